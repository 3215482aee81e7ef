"""The sweep command: what it skips, what it repeats, what it survives."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_sweep
from fake_cells import cell
from filelock import FileLock

from bench import cluster, ledger, manifest, session, spec, sweep
from bench.cells import Cell
from bench.jobs import Job, JobQueue
from bench.ledger import Ledger
from bench.outbox import NoRoomError
from bench.provenance import Commit
from bench.records import Record, RecordStore


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny_sweep.write_images(tmp_path / "data")
    tiny_sweep.write(tmp_path, tiny_sweep.tree())
    return tmp_path


def _arguments(place: Path, *more: str) -> list[str]:
    return [str(place / "tiny.yaml"), "--data-root", str(place / "data"), "--out", str(place / "runs"), *more]


def _cells(place: Path) -> Sequence[Cell]:
    return spec.load(place / "tiny.yaml", (), place / "data").cells


def _fill(place: Path, statuses: dict[str, Any] | None = None) -> RecordStore:
    """A results folder in which every cell has its record."""
    store = RecordStore(place / "runs" / "tiny")
    for one in _cells(place):
        status = (statuses or {}).get(one.defense["name"], "ok")
        store.append(Record(id=one.id, cell=one, status=status, acc=0.9, asr=0.1, ra=0.8, der=0.9, seconds=1.0))
    return store


class _StartedError(Exception):
    pass


class _NoCluster:
    def __init__(self, *_: Any) -> None:
        raise _StartedError


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ClusterStart", _NoCluster)


@pytest.mark.usefixtures("no_cluster")
def test_a_sweep_that_is_done_computes_nothing_and_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _fill(place)
    before = store.path.read_bytes()
    assert sweep.main(_arguments(place)) == 0
    assert "nothing to compute: all 6 cells" in capsys.readouterr().out
    assert store.path.read_bytes() == before
    assert (store.folder / "report.html").exists()


@pytest.mark.usefixtures("no_cluster")
def test_failed_cells_are_kept_unless_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _fill(place, {"none": "failed"})
    assert sweep.main(_arguments(place)) == 1
    assert "2 cells failed in an earlier run; --retry-failed runs them again" in capsys.readouterr().out
    with pytest.raises(_StartedError):
        sweep.main(_arguments(place, "--retry-failed"))
    assert len(store.read()) == 6, "not dropped before everything is there that they are computed with"


def test_failed_records_are_put_aside_when_their_cells_run_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import engine

    store, seen = _fill(place, {"none": "failed"}), []

    def run_sweep(*given: Any) -> None:
        seen.append((len(store.read()), len((store.folder / "records.jsonl.superseded").read_bytes().splitlines())))

    monkeypatch.setattr(cluster, "ClusterStart", _Ready)
    monkeypatch.setattr(engine, "run_sweep", run_sweep)
    sweep.main(_arguments(place, "--retry-failed"))
    assert seen == [(4, 2)]


@pytest.mark.usefixtures("no_cluster")
def test_a_refused_retry_keeps_the_failed_records(place: Path) -> None:
    store = _fill(place, {"none": "failed"})
    before = store.path.read_bytes()
    (store.folder / "sweep.json").write_text("no manifest")
    assert sweep.main(_arguments(place, "--retry-failed")) == 2
    assert store.path.read_bytes() == before


@pytest.mark.usefixtures("no_cluster")
def test_a_dry_run_counts_the_cells_to_be_retried_and_keeps_their_records(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = _fill(place, {"none": "failed"})
    before = store.path.read_bytes()
    assert sweep.main(_arguments(place, "--dry-run", "--retry-failed")) == 0
    said = capsys.readouterr().out
    assert "2 cells would be computed" in said
    assert "failed in an earlier run" not in said
    assert store.path.read_bytes() == before
    assert not (store.folder / "records.jsonl.superseded").exists()


@pytest.mark.usefixtures("no_cluster")
def test_a_dry_run_writes_no_results(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(_arguments(place, "--dry-run", "--cache", str(place / "cache"))) == 0
    assert "6 cells would be computed, 2 victims trained" in capsys.readouterr().out
    assert not (place / "runs").exists()


def test_two_sweeps_do_not_share_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "runs" / "tiny"
    folder.mkdir(parents=True)
    with FileLock(str(folder / ".sweep.lock")):
        assert sweep.main(_arguments(place)) == 2
    assert "another sweep is writing to" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(_NoCluster):
        def __init__(self, *_: Any) -> None:
            pass

        def start(self) -> None:
            raise KeyboardInterrupt

        def stop(self) -> None:
            pass

    monkeypatch.setattr(cluster, "ClusterStart", Interrupted)
    assert sweep.main(_arguments(place)) == session.INTERRUPTED
    assert "interrupted with 0 of 6 cells recorded; the same command goes on" in capsys.readouterr().out


class _Ready:
    """A cluster that is there at once."""

    def __init__(self, *_: Any) -> None: ...

    def start(self) -> None: ...

    def wait(self) -> list[cluster.Grant]:
        return [cluster.Grant(1, 0, 1, 2)]

    def stop(self) -> None: ...


@pytest.mark.parametrize("setting", ["cell.model=nope", "cell.clean_size=999"])
def test_what_is_refused_is_not_in_the_manifest(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    """Whether its names or its data are at fault."""
    monkeypatch.setattr(cluster, "ClusterStart", _Ready)
    assert sweep.main(_arguments(place, "--set", setting)) == 2
    assert capsys.readouterr().err.startswith(f"error: {setting.partition('=')[0]}: ")
    assert manifest.read(place / "runs" / "tiny") is None


def test_what_is_computed_is_in_the_manifest_before(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import engine

    def run_sweep(*given: Any) -> None:
        assert manifest.read(place / "runs" / "tiny") is not None
        raise _StartedError

    monkeypatch.setattr(cluster, "ClusterStart", _Ready)
    monkeypatch.setattr(engine, "run_sweep", run_sweep)
    with pytest.raises(_StartedError):
        sweep.main(_arguments(place))


@pytest.mark.usefixtures("no_cluster")
def test_the_report_is_made_again_if_the_manifest_says_something_new(place: Path) -> None:
    store = _fill(place)
    page, told = store.folder / "report.html", store.folder / "report.md"
    made: list[int] = []
    for setting in ("seeds=1", "seeds=1", "resources.cpu=2"):  # the cells are the same
        assert sweep.main(_arguments(place, "--set", setting)) == 0
        made.append(page.stat().st_ino)
    assert made[0] == made[1] != made[2], "not twice for the same"
    assert "Set on the command line: resources.cpu=2." in told.read_text()


@pytest.mark.parametrize("more", [(), ("--retry-failed",)])
def test_an_interrupt_keeps_what_failed_meanwhile(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    from bench import engine

    store, again = RecordStore(place / "runs" / "tiny"), _cells(place)[0]
    if more:
        store.append(Record(id=again.id, cell=again, status="failed", reason="earlier"))

    def run_sweep(*given: Any) -> None:
        store.append(Record(id=again.id, cell=again, status="failed", reason="meanwhile"))
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "ClusterStart", _Ready)
    monkeypatch.setattr(engine, "run_sweep", run_sweep)
    assert sweep.main(_arguments(place, *more)) == session.INTERRUPTED
    said = capsys.readouterr().out
    assert "interrupted with 1 of 6 cells recorded" in said
    assert "failed in an earlier run" not in said
    assert [record.reason for record in store.read()] == ["meanwhile"]


def test_sigterm_ends_a_sweep_as_an_interrupt_does(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import engine

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cluster, "ClusterStart", _Ready)
    monkeypatch.setattr(engine, "run_sweep", lambda *given: signal.raise_signal(signal.SIGTERM))
    assert sweep.main(_arguments(place)) == session.INTERRUPTED
    assert "interrupted with 0 of 6 cells recorded" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("error", "expected", "line"),
    [
        (KeyboardInterrupt(), session.INTERRUPTED, ""),
        (NoRoomError("no room"), sweep.NO_ROOM, "error: no room\n"),
        (cluster.CutOffError(), session.CUT_OFF, "with 0 of 6 cells recorded; the same command goes on from here\n"),
    ],
)
def test_what_the_workers_did_is_told_and_kept_whatever_ends_the_sweep(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException,
    expected: int, line: str,
) -> None:  # fmt: skip
    from bench import engine

    def run_sweep(*given: Any) -> None:
        book = next(one for one in given if isinstance(one, Ledger))
        book.offers, book.first_start, book.last_end = [(90.0, 2)], 100.0, 110.0
        book.add({"seconds": 10.0, "work": 5.0, "gap": 0.5})
        book.statuses["ok"] = 1
        raise error

    monkeypatch.setattr(cluster, "ClusterStart", _Ready)
    monkeypatch.setattr(engine, "run_sweep", run_sweep)
    for runs in (1, 2):
        assert sweep.main(_arguments(place)) == expected
        said, told = capsys.readouterr()
        assert told.endswith(line)
        assert told.count("\n") == bool(line)
        assert "1 of 6 cells in " in said
        assert "workers were busy 50% of it, 25% training and defending" in said
        assert "overhead, median (worst): 0.50 s (0.50 s) from a worker's job to its next" in said
        kept = json.loads((place / "runs" / "tiny" / ledger.FILE).read_text())["runs"]
        assert [(one["finished"], one["offered_seconds"], one["busy_seconds"]) for one in kept] == [
            (False, 20.0, 10.0)
        ] * runs


def test_records_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.pth").write_bytes(b"weights")
    tree = tiny_sweep.tree(grid={"defense": ["none"]})
    for key in ("attack", "target", "training"):
        del tree["cell"][key]
    tree["cell"]["victim"] = {"checkpoint": "x.pth", "trigger": "badnets", "target": 1}
    plan = spec.load(tiny_sweep.write(tmp_path, tree), (), tmp_path / "data")
    options = sweep.parse([str(tmp_path / "tiny.yaml")])
    (one,) = plan.cells
    stored = session.Session(options, plan, tmp_path)._portable(Record(id=one.id, cell=one, status="ok"))
    assert stored.cell.victim is not None
    assert stored.cell.victim.checkpoint == "x.pth"
    assert stored.cell.id == stored.id == one.id


# --- with Ray -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grant() -> Iterator[cluster.Grant]:
    starting = cluster.ClusterStart([spec.Resources(cpu=1, gpu=0)], None, 2)
    starting.start()
    try:
        (found,) = starting.wait()
        yield found
    finally:
        starting.stop()


class _Listener:
    def started(self, job: Job) -> None: ...

    def finished(self, job: Job, status: str, seconds: float, reason: str | None = None) -> None: ...

    def tick(self) -> None: ...


ONCE, ALWAYS, HOPELESS = 13, 14, 0.3
"""Clean sizes of cells whose worker dies the first time, or every time; the poison ratio of a victim that fails."""


def _do(job: dict[str, Any], log: Path) -> dict[str, Any]:
    """What a worker does in this test, in place of the real thing; every job leaves a line in ``log``."""
    one = Cell.model_validate_json(job["cell"])
    with log.open("a") as file:
        file.write(f"{job['kind']} {one.victim_id if job['kind'] == 'victim' else one.id} {os.getpid()}\n")
    if job["kind"] == "victim":
        return {"error": "no luck"} if one.poison_ratio == HOPELESS else {}
    first = log.read_text().count(one.id) == 1
    if one.clean_size == ALWAYS or (one.clean_size == ONCE and first):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"record": Record(id=one.id, cell=one, status="ok").line().decode()}


@pytest.mark.ray
def test_workers_are_reused_and_their_deaths_survived(
    grant: cluster.Grant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from bench import engine

    class Fake(engine.CellTrainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self._job, self._log = config, self.settings.cache_dir / "log"

        def step(self) -> dict[str, Any]:
            return {"done": True, "seconds": 0.01, **_do(self._job, self._log)}

    monkeypatch.setattr(engine, "CellTrainable", Fake)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    sizes = (*range(1, 9), ONCE, ALWAYS)
    cells = [cell("none", poison_ratio=ratio, clean_size=n) for ratio in (0.1, 0.2, HOPELESS) for n in sizes]
    queue = JobQueue(cells, lambda one: False, {})
    settings = engine.WorkerSettings(tmp_path, tmp_path, 1, Commit(None, None))
    store = RecordStore(tmp_path / "results")
    book = Ledger()
    engine.run_sweep(queue, grant, settings, store, lambda record: record, _Listener(), book)
    records = {(one.cell.poison_ratio, one.cell.clean_size): one for one in store.read()}
    assert len(store.path.read_bytes().splitlines()) == len(records) == 30
    for (ratio, size), record in records.items():
        if ratio == HOPELESS:
            assert record.reason == "its victim could not be prepared: no luck"
        elif size == ALWAYS:
            assert record.status == "failed"
            assert "its worker died 2 times, the last time because: " in str(record.reason)
        else:
            assert record.status == "ok", (size, record.reason)
    runs = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    counts = Counter(name for _, name, _ in runs)
    again = {cell("none", poison_ratio=ratio, clean_size=n).id for ratio in (0.1, 0.2) for n in (ONCE, ALWAYS)}
    assert {name for name, count in counts.items() if count > 1} == again
    assert len({pid for _, _, pid in runs}) <= 2 + 6  # two to begin with, and one after each of six deaths
    assert book.statuses == {"ok": 18, "failed": 12}
    assert queue.finished()
    assert not (store.folder / ".tune").exists()


def _run(place: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HOME": str(place)}
    command = [sys.executable, "-m", "bench.sweep", *_arguments(place)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=place
    )


@pytest.mark.ray
def test_killed_in_the_middle_and_run_again_each_record_is_there_once(place: Path) -> None:
    store = RecordStore(place / "runs" / "tiny")
    first = _run(place)
    while first.poll() is None and not (store.path.exists() and store.path.read_bytes().count(b"\n") >= 2):
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = store.read()
    assert len(kept) >= 2
    with store.path.open("ab") as file:
        file.write(b'{"schema":1,"id":"cut')

    out, error = _run(place).communicate(timeout=400)
    assert error.count("\n") <= 1, error  # the warning about the damaged line
    assert "1 damaged line(s)" in error
    # Two records may be of the first victim alone, the second not yet trained.
    assert re.search(rf"{6 - len(kept)} cells to compute, [01] victims to train", out), out
    assert "report:" in out
    records = store.read()
    assert len(store.path.read_bytes().splitlines()) == len(records) == 6
    assert {one.id for one in records} == {one.id for one in _cells(place)}
    assert records[: len(kept)] == kept
    assert {one.status for one in records} == {"ok"}
    assert {one.provenance.threads for one in records if one.provenance} == {1}
    assert (place / "runs" / "tiny" / "report.html").exists()
    assert not (place / "ray_results").exists()
    assert not (store.folder / ".tune").exists()
