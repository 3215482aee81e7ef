"""How often a job is started again whose worker died: by itself, or with its machine; reports that cannot be read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cells import cell

from bench import cluster
from bench.engine import COUNT_SECONDS, NODE_DEATHS, RETRIES, QueueSearcher, Recorder
from bench.jobs import Job, JobQueue
from bench.ledger import Ledger
from bench.outbox import Outbox
from bench.records import RecordStore


class Listener:
    def __init__(self) -> None:
        self.ended: list[str] = []
        self.running: set[str] = set()

    def started(self, job: Job) -> None:
        self.running.add(job.key)

    def finished(self, job: Job, status: str, seconds: float, reason: str | None = None) -> None:
        self.ended.append(status)
        self.running.discard(job.key)

    def tick(self) -> None: ...


class Sweep:
    """Two cells, of which each trial is the first one handed out; its worker dies on a machine of the test's choice."""

    def __init__(self, folder: Path, ready: bool = True) -> None:
        self.store = RecordStore(folder)
        self.queue = JobQueue([cell("none"), cell("none", seed=1)], lambda one: ready, {})
        self.searcher = QueueSearcher(self.queue, None, Outbox(self.store))
        self.listener, self.count = Listener(), 0
        self.recorder = Recorder(self.searcher, Outbox(self.store), lambda record: record, self.listener, Ledger())

    def die(self, machine: str) -> str:
        """The cell that was lost."""
        self.count += 1
        worker = SimpleNamespace(_actor_id=self.count) if machine else None
        if machine:
            self.recorder._places[self.count] = f"{machine} cpu"
        trial: Any = SimpleNamespace(
            trial_id=str(self.count), error_file=None, temporary_state=SimpleNamespace(ray_actor=worker)
        )
        self.searcher.suggest(trial.trial_id)
        key = self.searcher.jobs[trial.trial_id].key
        self.recorder.on_trial_start(0, [], trial)
        self.recorder.on_trial_error(0, [], trial)
        return key


@pytest.fixture(autouse=True)
def _attached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "is_cut_off", lambda: False)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The machines that Ray calls dead."""
    found: set[str] = set()
    monkeypatch.setattr(cluster, "dead_nodes", lambda: found)
    return found


@pytest.mark.parametrize("machine", ["", "a"])
def test_a_cell_that_ends_its_workers_is_given_up(tmp_path: Path, dead: set[str], machine: str) -> None:
    sweep = Sweep(tmp_path)
    lost = [sweep.die(machine) for _ in range(RETRIES + 1)]
    assert len(set(lost)) == 1, "it is tried again at once"
    assert sweep.listener.ended == ["failed"]
    (record,) = sweep.store.read()
    assert (record.id, record.reason) == (lost[0], "its worker died 2 times, the last time because: unknown")
    assert (sweep.queue.running, sweep.queue.cells_left) == ({}, 1)


def test_deaths_of_machines_are_counted_apart(tmp_path: Path, dead: set[str]) -> None:
    sweep = Sweep(tmp_path)
    for number in range(NODE_DEATHS + RETRIES):
        first = sweep.die(f"machine-{number}")
        dead.add(f"machine-{number}")
        assert sweep.listener.ended == []
    assert sweep.die("machine-9") == first
    assert sweep.listener.ended == ["failed"]
    assert sweep.die("machine-9") != first


def test_a_cell_that_ends_its_workers_is_given_up_whatever_machines_died_before(tmp_path: Path, dead: set[str]) -> None:
    sweep = Sweep(tmp_path)
    for machine in ("gone", "here", "there"):
        assert sweep.listener.ended == []
        sweep.die(machine)
        dead.add("gone")
    assert sweep.listener.ended == ["failed"]


def test_no_cell_has_failed_that_died_with_the_only_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tmp_path)
    sweep.die("a")
    monkeypatch.setattr(cluster, "is_cut_off", lambda: True)
    with pytest.raises(cluster.CutOffError):
        sweep.die("a")
    assert not sweep.store.path.exists()
    sweep.recorder._counted -= COUNT_SECONDS
    with pytest.raises(cluster.CutOffError):  # nor does a sweep wait on where nothing runs that could die
        sweep.recorder.on_step_end(0, [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"schema":1,"details":{"file":"\\udcff"}}', "Invalid JSON: lone leading surrogate"),
        ("{}", "id: Field required"),
    ],
)
def test_a_record_that_cannot_be_read_is_its_cells_failure_alone(tmp_path: Path, text: str, why: str) -> None:
    sweep = Sweep(tmp_path)
    sweep.searcher.suggest("1")
    lost = sweep.searcher.jobs["1"].key
    trial: Any = SimpleNamespace(trial_id="1")
    sweep.recorder.on_trial_start(0, [], trial)
    sweep.recorder.on_trial_result(0, [], trial, {"record": text, "seconds": 2.0})
    (record,) = sweep.store.read()
    assert (record.id, record.status) == (lost, "failed")
    assert str(record.reason).startswith(f"its record cannot be read: {why}")
    assert "\n" not in str(record.reason)
    assert sweep.listener.ended == ["failed"]
    assert (sweep.queue.running, sweep.queue.cells_left) == ({}, 1)


def test_a_victim_that_cannot_be_prepared_runs_no_longer(tmp_path: Path) -> None:
    sweep, trial = Sweep(tmp_path, ready=False), SimpleNamespace(trial_id="1")
    sweep.searcher.suggest("1")
    sweep.recorder.on_trial_start(0, [], trial)
    assert len(sweep.listener.running) == 1
    sweep.recorder.on_trial_result(0, [], trial, {"error": "no room", "seconds": 2.0})
    assert sweep.listener.running == set()
    assert sweep.listener.ended == ["failed", "failed"], "the victim and its cell"
    (record,) = sweep.store.read()
    assert (record.status, record.reason) == ("failed", "its victim could not be prepared: no room")
    assert sweep.recorder.ledger.statuses == {"failed": 1}
    assert (sweep.queue.running, sweep.queue.victims_left) == ({}, 1)
