"""Seconds that a hundred thousand cells take the driver: to expand, to resume from, and one by one as they finish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import spec
from bench.cells import Cell
from bench.jobs import JobQueue
from bench.records import Record, RecordStore
from bench.timing.scale import made_record

CELLS = 100_000
WRITTEN = 500
"""How many records are written where writing is what is timed."""


pytestmark = pytest.mark.benchmark(group="scale")


def _write_sweep(folder: Path) -> Path:
    cell = {"dataset": "digits", "model": "simplified_vgg", "attack": "badnets", "target": 3, "defense": "ibau"}
    radii = [0.5 * step for step in range(1, 101)]
    grid = {"poison_ratio": [0.01 * step for step in range(1, 11)], "radius": radii, "clean_size": [450]}
    path = folder / "large.yaml"
    path.write_text(yaml.safe_dump({"name": "large", "cell": cell, "grid": grid, "seeds": CELLS // 1000}))
    return path


def _note(benchmark: Any, facts: dict[str, Any], what: str, count: int) -> None:
    benchmark.extra_info.update(facts, kind="scale", what=what, cells=count)


def test_expansion(benchmark: Any, tmp_path: Path, facts: dict[str, Any]) -> None:
    """From the file to distinct, hashed cells."""
    path = _write_sweep(tmp_path)
    plan = benchmark.pedantic(spec.load, (path, (), tmp_path), rounds=1)
    assert len(plan.cells) == CELLS
    _note(benchmark, facts, "expand and deduplicate", CELLS)


def test_resumption(benchmark: Any, tmp_path: Path, facts: dict[str, Any]) -> None:
    """From a store in which every cell has its record to what is left: nothing."""
    plan = spec.load(_write_sweep(tmp_path), (), tmp_path)
    store = RecordStore(tmp_path)
    store.path.write_bytes(b"".join(made_record(cell, 4.0).line() for cell in plan.cells))

    def run() -> list[Cell]:
        known = {record.id for record in store.read(repair=True)}
        return [cell for cell in plan.cells if cell.id not in known]

    assert benchmark.pedantic(run, rounds=1) == []
    _note(benchmark, facts, "resume", CELLS)


def test_queue(benchmark: Any, tmp_path: Path, facts: dict[str, Any]) -> None:
    """Every cell handed out and finished, on one worker."""
    plan = spec.load(_write_sweep(tmp_path), (), tmp_path)

    def run() -> None:
        queue = JobQueue(plan.cells, lambda cell: True, {})
        while (job := queue.next()) is not None:
            queue.started(job)
            queue.finish(job, 1.0)

    benchmark.pedantic(run, rounds=1)
    _note(benchmark, facts, "queue: hand out and finish", CELLS)


def test_records(benchmark: Any, tmp_path: Path, facts: dict[str, Any]) -> None:
    """What the driver does with a record that comes in: parse it, and append it to the store, synced."""
    plan = spec.load(_write_sweep(tmp_path), (), tmp_path)
    lines = [made_record(cell, 4.0).line() for cell in plan.cells[:WRITTEN]]
    store = RecordStore(tmp_path)

    def run() -> None:
        for line in lines:
            store.append(Record.model_validate_json(line))

    benchmark.pedantic(run, rounds=1)
    _note(benchmark, facts, "store: parse, append, sync", WRITTEN)
