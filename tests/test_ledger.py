"""Where the workers' seconds go: counted on a clock that only the test moves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cells import cell, record
from hypothesis import given
from hypothesis import strategies as st

from bench import clock, worker
from bench.cells import Cell
from bench.clock import Stopwatch
from bench.ledger import FILE, Ledger, keep
from bench.records import Record
from bench.worker import Worker

LOADING, DEFENDING, SCORING, FITTING, TRAINING, WAITING = 0.25, 4.0, 2.0, 8.0, 64.0, 0.5
"""Seconds of the fake clock, exact in binary."""


class FakeTime:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def perf_counter(self) -> float:
        return self.seconds


class FakeRunner:
    """Takes known times, and scores twice."""

    def __init__(self, now: FakeTime, **changes: Any) -> None:
        self.scoring, self.attacking, self._now, self._changes = Stopwatch(), Stopwatch(), now, changes

    def prepare_victim(self, one: Cell) -> Any:
        with self.attacking:
            self._now.seconds += FITTING
        self._now.seconds += LOADING + TRAINING
        if self._changes.get("broken"):
            raise RuntimeError("no luck")
        return SimpleNamespace(seconds=TRAINING)

    def run(self, one: Cell) -> Record:
        self._now.seconds += LOADING + DEFENDING
        for _ in "12":
            with self.scoring:
                self._now.seconds += SCORING / 2
        return Record(id=one.id, cell=one, status="ok").model_copy(update={"seconds": DEFENDING, **self._changes})


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(clock, "time", fake)
    monkeypatch.setattr(worker, "time", fake)
    return fake


def job(kind: str, seed: int = 0) -> dict[str, str]:
    return {"kind": kind, "cell": cell(seed=seed).model_dump_json()}


def do(now: FakeTime, *kinds: str, **changes: Any) -> list[dict[str, Any]]:
    """Reports of jobs of these kinds, with ``WAITING`` between them."""
    one, found = Worker(FakeRunner(now, **changes)), []  # type: ignore[arg-type]
    for seed, kind in enumerate(kinds):
        found.append(one.do(job(kind, seed)))
        now.seconds += WAITING
    return found


def test_a_cell_is_its_defense_scoring_and_what_is_besides(now: FakeTime) -> None:
    victim, first, second = do(now, "victim", "cell", "cell")
    assert (victim["seconds"], victim["work"]) == (LOADING + FITTING + TRAINING, FITTING + TRAINING)
    assert "besides" not in victim
    assert (first["seconds"], first["work"], first["besides"]) == (LOADING + DEFENDING + SCORING, DEFENDING, LOADING)
    assert "gap" not in victim  # its worker was starting, not waiting
    assert (first["gap"], second["gap"]) == (WAITING, WAITING)
    assert Record.model_validate_json(second["record"]).seconds == DEFENDING


@pytest.mark.parametrize("changes", [{"seconds": None}, {"details": {"out_of_memory": {"attempts": 2}}}])
def test_where_the_defenses_seconds_are_not_all_known_nothing_is_besides(now: FakeTime, changes: Any) -> None:
    (found,) = do(now, "cell", **changes)
    assert "besides" not in found
    assert found["seconds"] == LOADING + DEFENDING + SCORING


def test_a_victim_that_fails_is_told_of_and_the_next_gap_counted_from_it(now: FakeTime) -> None:
    first, second = do(now, "victim", "victim", broken=True)
    assert str(first["error"]).startswith("RuntimeError: no luck")
    assert second["gap"] == WAITING


def test_the_ledger_reports_median_and_worst(now: FakeTime) -> None:
    ledger = Ledger()
    assert ledger.overhead() == ""
    for found in do(now, "victim", "cell", "cell", "cell"):
        assert ledger.add(found) == found["seconds"]
    ledger.add({"seconds": 30.0, "gap": 9.0, "besides": 20.0, "work": 6.0})
    assert ledger.overhead() == (
        "overhead, median (worst): 0.50 s (9.00 s) from a worker's job to its next,"
        " 0.25 s (20.00 s) inside a cell neither defending nor scoring"
    )
    assert (ledger.busy, ledger.work) == (72.25 + 3 * 6.25 + 30.0, 72.0 + 3 * 4.0 + 6.0)
    ledger.first_start, ledger.last_end = 100.0, 100.0 + ledger.busy
    assert ledger.shares() is None
    ledger.offers = [(90.0, 1)]
    assert ledger.shares() == (1.0, ledger.work / ledger.busy)


def test_workers_that_join_and_die_count_while_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, now = Ledger(), SimpleNamespace(seconds=90.0)
    monkeypatch.setattr("bench.ledger.time", SimpleNamespace(monotonic=lambda: now.seconds))
    for at, workers in ((90.0, 2), (105.0, 2), (110.0, 8), (115.0, 1), (130.0, 4)):
        now.seconds = at
        ledger.offer(workers)
    ledger.busy, ledger.work, ledger.first_start, ledger.last_end = 35.0, 7.0, 100.0, 125.0
    assert ledger.offered == 10 * 2 + 5 * 8 + 10 * 1
    assert ledger.shares() == (0.5, 0.1)
    assert ledger.entry(finished=True)["workers"] == [[0.0, 2], [10.0, 8], [15.0, 1], [30.0, 4]]


def test_a_ledger_that_is_none_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / FILE
    keep(tmp_path, {"run": 1})
    keep(tmp_path, {"run": 2})
    assert json.loads(path.read_text()) == {"schema": 1, "runs": [{"run": 1}, {"run": 2}]}
    for text in ("{", "[]", '{"schema": 1}', '{"runs": 3}'):
        path.write_text(text)
        keep(tmp_path, {"run": 3})
        assert json.loads(path.read_text())["runs"] == [{"run": 3}]
        assert path.with_name("ledger.json.damaged").read_text() == text
    assert caplog.text.count("moved to ledger.json.damaged") == 4


@given(st.lists(st.tuples(*[st.floats(0, 1e6)] * 3), max_size=20))
def test_jobs_add_up_in_any_order(jobs: list[tuple[float, float, float]]) -> None:
    one, other = Ledger(), Ledger()
    for ledger, listed in ((one, jobs), (other, jobs[::-1])):
        for seconds, gap, besides in listed:
            ledger.add({"seconds": seconds, "gap": gap, "besides": besides})
    assert one.overhead() == other.overhead()
    assert len(one.gaps) == len(one.besides) == len(jobs)
    assert one.busy == pytest.approx(other.busy)


def test_a_stopwatch_adds_its_blocks_up_and_stops_for_an_exception(now: FakeTime) -> None:
    watch = Stopwatch()
    with watch:
        now.seconds += 1.0
    now.seconds += 10.0

    def fail() -> None:
        with watch:
            now.seconds += 2.0
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert watch.seconds == 3.0


def test_a_record_of_another_worker_says_nothing_of_gaps() -> None:
    ledger = Ledger()
    ledger.add({"seconds": 1.0, "record": record().line().decode()})
    assert (ledger.gaps, ledger.besides, ledger.busy) == ([], [], 1.0)


def test_the_entry_holds_what_the_ledger_counted() -> None:
    ledger = Ledger()
    for seconds, work, gap in ((30.0, 6.0, 1.0), (10.0, 4.0, 9.0), (5.0, 1.0, 2.0)):
        ledger.add({"seconds": seconds, "work": work, "gap": gap})
    ledger.offers, ledger.first_start, ledger.last_end = [(100.0, 2)], 100.0, 150.0
    entry = ledger.entry(finished=True)
    figures = [entry[f"{name}seconds"] for name in ("", "offered_", "busy_", "work_")]
    assert figures == [50.0, 100.0, 45.0, 11.0]
    assert entry["gap_seconds"] == {"count": 3, "median": 2.0, "worst": 9.0}
    assert entry["besides_seconds"] is None
