"""What grows with the number of cells grows no faster than it: counted, not timed (``bench/timing/test_scale.py``)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_sweep
from fake_cells import cell, record
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UserError
from bench import cells, dry_run, normalise, records, session, spec, sweep
from bench.cells import Cell
from bench.estimate import Pace
from bench.jobs import JobQueue
from bench.preflight import Checked, Sizes
from bench.records import Record, RecordStore

SEEDS = 40


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a cell is hashed, a tree validated as a cell, a line parsed as a record and as JSON."""
    counts: Counter[str] = Counter()

    def count(module: Any, name: str, key: str) -> None:
        real = getattr(module, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[key] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    count(cells, "content_hash", "hashes")
    count(normalise.Normaliser, "cell", "validated")
    count(records.Record, "model_validate_json", "records")
    monkeypatch.setattr(records, "json", SimpleNamespace(dumps=json.dumps, loads=json.loads))
    count(records.json, "loads", "loads")
    return counts


def _plan(folder: Path) -> spec.SweepPlan:
    """Eight combinations of which six differ, ``SEEDS`` times each."""
    grid = {"poison_ratio": [0.1, 0.3], "radius": [0.5, 2.0], "defense": ["none", "ibau"]}
    return spec.load(tiny_sweep.write(folder, tiny_sweep.tree(grid=grid, seeds=SEEDS)), (), folder)


def test_a_sweep_hashes_each_cell_once_and_validates_each_combination_once(
    tmp_path: Path, counted: Counter[str]
) -> None:
    plan = _plan(tmp_path)
    assert counted == {"hashes": 8 * SEEDS, "validated": 8}  # before equal ones are one
    assert len(plan.cells) == 6 * SEEDS
    store = RecordStore(tmp_path / "runs" / "tiny")
    store.folder.mkdir(parents=True)
    done = plan.cells[: 5 * SEEDS]
    store.path.write_bytes(b"".join(Record(id=one.id, cell=one, status="ok").line() for one in done))
    counted.clear()
    left = session.Session(sweep.parse(["tiny.yaml"]), plan, store.folder)._left()
    assert left == list(plan.cells[5 * SEEDS :])
    assert counted == {"records": 5 * SEEDS}
    counted.clear()
    JobQueue(left, lambda one: True, {})
    assert counted == {"hashes": SEEDS}  # each cell's victim, once


def test_a_dry_run_looks_at_each_cell_once_for_all_victims_together() -> None:
    left = Watched(cell("none", poison_ratio=ratio / 1000) for ratio in range(1, 101))
    pace = Pace((), Checked({}, {}, {("digits", "simplified_vgg"): 1.0}, {"digits": Sizes(1000, 400, 10)}))
    assert len(list(dry_run._victims(left, [], pace))) == 100
    assert left.passes <= 2


class Watched(list[Cell]):
    """Counts how often somebody goes through it."""

    passes = 0

    def __iter__(self) -> Iterator[Cell]:
        self.passes += 1
        return super().__iter__()


@given(st.integers(1, 1000))
def test_a_changed_copy_has_hashes_of_its_own(seed: int) -> None:
    one = cell("ibau")
    before = one.id, one.victim_id
    other = one.model_copy(update={"seed": seed})
    fresh = Cell.model_validate_json(other.model_dump_json())
    assert (other.id, other.victim_id) == (fresh.id, fresh.victim_id)
    assert other.id != one.id
    assert (one.id, one.victim_id) == before
    assert other == fresh
    assert other.model_dump() == fresh.model_dump()
    assert one.model_copy() == one


def test_a_line_without_a_schema_is_refused(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    tree = json.loads(record("none").line())
    del tree["schema"]
    store.path.write_text(json.dumps(tree) + "\n")
    with pytest.raises(UserError, match="schema None; expected 1"):
        store.read()


def test_reading_with_repair_moves_damage_aside(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.path.write_bytes(record("none").line() + b"{cut\n" + record("ibau").line())
    assert len(store.read(repair=True)) == 2
    assert store.path.with_name("records.jsonl.damaged").read_bytes() == b"{cut\n"
    assert store.path.read_bytes() == record("none").line() + record("ibau").line()
