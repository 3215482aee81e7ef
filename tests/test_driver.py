"""The simulated sweep: its clock, its workers and its records are right. No test asserts a real time."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import UserError
from bench.jobs import Job
from bench.records import Record, RecordStore
from bench.report.driver import NONE, DriverRun, DriverRuns, markdown, read, text
from bench.report.embed import embed
from bench.spec import SweepPlan
from bench.timing import driver, simulation
from bench.timing.simulation import Lengths, Simulation, Span

CELLS, VICTIMS = 200, 9
LENGTHS = Lengths(mean=60.0, spread=0.7, seed=3)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    return simulation.plan(CELLS, tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    return simulation.plan(30, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module", params=[1, 7, 60])
def done(
    request: pytest.FixtureRequest, plan: SweepPlan, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DriverRun, list[Span], RecordStore]:
    folder = tmp_path_factory.mktemp("records")
    simulated = Simulation(plan, request.param, LENGTHS, folder)
    return simulated.run(), simulated.spans, RecordStore(folder)


def test_the_plan_has_the_cells_asked_for_and_several_families_and_victims(plan: SweepPlan) -> None:
    assert len({cell.id for cell in plan.cells}) == CELLS
    assert len({cell.victim_id for cell in plan.cells}) == VICTIMS
    assert len({Job("cell", cell, cell.id, cell.victim_id).family for cell in plan.cells}) == 48


def test_every_cell_ends_once_and_has_its_record(done: Any, plan: SweepPlan) -> None:
    run, spans, store = done
    ids = {cell.id for cell in plan.cells}
    assert (run.cells, run.victims, run.lost, run.doubled) == (CELLS, VICTIMS, 0, 0)
    assert sorted(span.job.key for span in spans) == sorted(ids | {cell.victim_id for cell in plan.cells})
    assert len(store.path.read_bytes().splitlines()) == CELLS
    for record in store.read():
        assert record.id in ids
        assert record.status == "ok"
    seconds = {record.id: record.seconds for record in store.read()}
    assert all(seconds[span.job.key] == span.end - span.start for span in spans if span.job.kind == "cell")


def test_no_cell_starts_before_its_victim_is_there(done: Any) -> None:
    _, spans, _ = done
    ready = {span.job.victim: span.end for span in spans if span.job.kind == "victim"}
    assert all(span.start >= ready[span.job.victim] for span in spans if span.job.kind == "cell")


def test_the_makespan_is_within_the_bounds_of_a_schedule_that_leaves_no_worker_idle(done: Any) -> None:
    """At least the work shared out evenly, or the longest job; at most Graham's bound with chains victim, cell."""
    run, spans, _ = done
    length = {span.job.key: LENGTHS.of(span.job) for span in spans}
    assert run.work == pytest.approx(sum(length.values()))
    assert run.makespan == spans[-1].end == max(span.end for span in spans)
    assert [span.end for span in spans] == sorted(span.end for span in spans)
    chain = max(length[span.job.key] + length[span.job.victim] for span in spans if span.job.kind == "cell")
    least, more = run.work / run.workers, 1e-9 * run.work
    assert max(least, chain) - more <= run.makespan <= least + (1 - 1 / run.workers) * chain + more
    assert 0 < run.busy <= 1 + 1e-9


def test_records_say_how_many_ran_beside_them_as_the_spans_do(done: Any) -> None:
    run, spans, store = done
    recorded = {one.id: one.provenance.cells_beside for one in store.read() if one.provenance}
    assert len(recorded) == CELLS
    starts = sorted({span.start for span in spans})
    level = {at: sum(one.start <= at < one.end for one in spans) for at in starts}
    assert max(level.values()) <= run.workers
    for span in spans:
        if span.job.kind == "cell":
            most = max(level[at] for at in starts if span.start <= at < span.end)
            assert recorded[span.job.key] == most - 1


def test_the_same_seed_gives_the_same_sweep_and_another_another(small: SweepPlan, tmp_path: Path) -> None:
    def spans(name: str, lengths: Lengths) -> list[tuple[str, float, float]]:
        simulated = Simulation(small, 7, lengths, tmp_path / name)
        simulated.run()
        return [(span.job.key, span.start, span.end) for span in simulated.spans]

    first = spans("first", LENGTHS)
    assert spans("again", LENGTHS) == first
    assert spans("other", Lengths(60.0, 0.7, seed=4)) != first


def test_lengths_are_log_normal_with_their_mean(plan: SweepPlan) -> None:
    jobs = [Job("cell", plan.cells[0], str(key), "v") for key in range(4000)]
    found = [LENGTHS.of(job) for job in jobs]
    error = 60.0 * math.sqrt(math.expm1(0.7**2) / len(jobs))
    assert abs(statistics.fmean(found) - 60.0) < 4 * error
    logs = [math.log(one) for one in found]
    assert statistics.stdev(logs) == pytest.approx(0.7, rel=0.05)
    assert statistics.fmean(logs) == pytest.approx(math.log(60.0) - 0.7**2 / 2, abs=0.05)
    assert {Lengths(5.0, 0.0, 0).of(job) for job in jobs[:10]} == {5.0}


@pytest.mark.parametrize(("times", "lost", "doubled"), [(0, 1, 0), (2, 0, 1)])
def test_a_store_that_loses_or_doubles_is_found_out(
    times: int, lost: int, doubled: int, small: SweepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(self: RecordStore, record: Record) -> None:
        for _ in range(times if record.id == small.cells[5].id else 1):
            RecordStore.append(self, record)

    monkeypatch.setattr(simulation._TimedStore, "append", append)
    monkeypatch.setattr(simulation, "DriverRun", lambda **found: found)  # no time was taken, so it would be refused
    found: Any = Simulation(small, 7, LENGTHS, tmp_path).run()
    assert (found["lost"], found["doubled"]) == (lost, doubled)


def test_the_command_writes_what_the_document_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scale" / "driver.json"
    assert driver.main(["--workers", "2", "5", "--cells", "10", "--mean", "4", "--file", str(path)]) == 0
    found = read(path)
    assert [(run.workers, run.cells, run.lost) for run in found.runs] == [(2, 10, 0), (5, 10, 0)]
    assert (found.mean, found.seed) == (4.0, 0)
    assert found.date.endswith("+00:00")
    assert [one.name for one in path.parent.iterdir()] == ["driver.json"], "the records are gone"
    block = embed("<!-- driver: scale/driver.json -->\nold\n<!-- /driver -->\nend\n", tmp_path)
    assert "old" not in block
    assert "| 2 | 10 | 1 |" in block
    assert block.endswith("<!-- /driver -->\nend\n")
    assert embed(block, tmp_path) == block
    assert markdown(found) in capsys.readouterr().out


def test_an_interrupt_costs_the_run_at_hand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = tmp_path / "driver.json", Simulation.run

    def interrupted(self: Simulation) -> DriverRun:
        if path.exists():
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(Simulation, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver.main(["--workers", "2", "5", "--cells", "10", "--mean", "4", "--file", str(path)])
    assert [one.workers for one in read(path).runs] == [2]
    assert [one.name for one in tmp_path.iterdir()] == ["driver.json"]


RUN = DriverRun(
    workers=4, cells=90, victims=10, work=300.0, makespan=100.0, pick=0.01, start=0.02, report=0.07, store=0.4,
    first=0.004, last=0.006, lost=0, doubled=0,
)  # fmt: skip
RUNS = DriverRuns(
    mean=3.0, spread=0.5, seed=1, commit="c0ffee1234", dirty=False, python="3.11", torch="2.6", package="0.1",
    device="A (2 CPUs)", threads=1, load=0.5, disk="ext4", date="2026-01-02T03:04:05+00:00", runs=(RUN,),
)  # fmt: skip


def test_the_table_computes_by_hand() -> None:
    """Half a second for a hundred jobs: a worker for each 5 ms of a job's length."""
    assert (RUN.each, RUN.busy, RUN.records_a_second) == (pytest.approx(0.005), 0.75, pytest.approx(225.0))
    shown = markdown(RUNS)
    assert "| 4 | 90 | 10 | 75.0% | 0 | 0 | 225 | 200 workers | 2,000 workers | 12,000 workers |" in shown
    assert "| 4 | 5.000 | 0.100 | 0.200 | 0.700 | 4.000 | 4.000 | 6.000 |" in shown
    assert "A (2 CPUs); load 0.5 of 1 for each CPU; records on ext4; python 3.11, torch 2.6; commit c0ffee1;" in shown


def test_without_a_file_the_document_says_so(tmp_path: Path) -> None:
    assert NONE in embed("<!-- driver: none.json -->\nold\n<!-- /driver -->\n", tmp_path)


@pytest.mark.parametrize(
    ("change", "words"), [({"schema_version": 9}, "schema_version"), ({"runs": []}, "runs"), ({"more": 1}, "more")]
)
def test_another_file_is_one_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text(RUNS))
    assert read(path) == RUNS
    path.write_text(json.dumps(json.loads(text(RUNS)) | change))
    with pytest.raises(UserError, match=rf"{words}.*expected what bench\.timing\.driver wrote"):
        read(path)


@pytest.mark.parametrize("option", [["--workers", "0"], ["--cells", "x"], ["--mean", "nan"], ["--cells", "9000000"]])
def test_a_wrong_option_is_refused_before_anything_runs(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        driver.main([*option, "--file", str(tmp_path / "x.json")])
    assert caught.value.code == 2
    assert f"argument {option[0]}: found {option[1]!r}; expected a number from" in capsys.readouterr().err


def test_a_folder_that_takes_no_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert driver.main(["--file", str(tmp_path / "file" / "x.json")]) == 2
    assert capsys.readouterr().err.startswith("error: --file: cannot write to")
