"""The display of a running sweep, as lines."""

from __future__ import annotations

import io

import pytest
from fake_cells import cell
from rich.console import Console

from bench import progress
from bench.cells import Cell
from bench.jobs import JobQueue
from bench.progress import Progress
from bench.titles import told_apart


def test_a_victim_in_training_tells_its_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    shown, done = io.StringIO(), iter([None, (3, 8)])
    queue = JobQueue([cell()], lambda one: False, {})

    def epochs(one: Cell) -> tuple[int, int] | None:
        assert one.victim_id == cell().victim_id
        return next(done)

    with Progress(Console(file=shown, width=200), queue, 1, 0, 1, epochs) as display:
        job = queue.next()
        assert job is not None
        assert job.kind == "victim"
        queue.started(job)
        display.started(job)
        display.tick()
        queue.finish(job, 1.0)
        display.finished(job, "ok", 1.0)
        following = queue.next()
        assert following is not None
        display.started(following)
    lines = shown.getvalue().splitlines()
    assert [line.rsplit("seed 0", 1)[1] for line in lines if "victim: " in line] == ["", ", 3 of 8 epochs"]
    assert "epochs" not in lines[-1]


def test_a_victim_that_failed_is_listed_no_longer_and_no_failed_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    shown = io.StringIO()
    queue = JobQueue([cell()], lambda one: False, {})
    with Progress(Console(file=shown, width=200), queue, 1, 0, 1) as display:
        job = queue.next()
        assert job is not None
        queue.started(job)
        display.started(job)
        (lost,) = queue.fail_victim(job)
        display.finished(job, "failed", 1.0, "no \x1b[31mroom\n" + "x " * 500)
        display.finished(lost, "failed", 1.0)
    told = [line for line in shown.getvalue().splitlines() if line.startswith("  failed: ")]
    assert [line.partition(":")[2].split(":")[0] for line in told] == [" victim", " ibau"]
    assert "(no \\x1b[31mroom\\nx x x" in told[0]
    assert told[0].endswith(" x…)")
    assert len(told[0]) < progress.REASON_LETTERS + 100
    last = shown.getvalue().splitlines()[-1]
    assert ", 1 failed | " in last
    assert last.endswith("| starting")


def test_victims_alike_are_told_apart_as_in_the_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    shown = io.StringIO()
    short, long = (cell(training={"epochs": epochs}) for epochs in (1, 2))
    queue = JobQueue([short, long], lambda one: False, {})
    titles = dict(zip((short.victim_id, long.victim_id), told_apart([short, long]), strict=True))
    with Progress(Console(file=shown, width=200), queue, 2, 0, 1, titles=titles) as display:
        for status in ("diverged", "failed"):
            job = queue.next()
            assert job is not None
            queue.started(job)
            display.started(job)
            display.finished(job, status, 1.0)
            queue.finish(job, 1.0) if status == "diverged" else queue.fail_victim(job)
    told = [line for line in shown.getvalue().splitlines() if line.startswith("  ")]
    assert [line.rsplit(", ", 1)[1] for line in told] == ["training.epochs 1", "training.epochs 2"]
