"""A victim's files cut, flipped by a bit, replaced by a stranger's: noticed, rebuilt, and the figures are the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_sweep
from conftest import Note
from stage import Stage

from bench.records import Record

pytestmark = pytest.mark.timeout(1200)

Damage = Callable[[Path, Path, random.Random], object]
"""Does something to a victim's file; the second is the same file of another victim."""


def _cut(path: Path, other: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(1, len(content) - 1)])


def _flip(path: Path, other: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(content))


def _exchange(path: Path, other: Path, chance: random.Random) -> None:
    shutil.copy(other, path)


CASES: dict[str, tuple[str, Damage]] = {
    "victim truncated": ("is cut at a random byte", _cut),
    "victim flipped by a bit": ("has one random bit flipped", _flip),
    "victim replaced by a stranger's": ("is replaced by that of another victim", _exchange),
}
SUFFIXES = ("safetensors", "json", "scores.json")


@pytest.mark.parametrize("fault", CASES)
def test_a_damaged_victim(fault: str, tmp_path: Path, note: Note, chance: random.Random) -> None:
    how, damage = CASES[fault]
    stage = Stage(tmp_path, tiny_sweep.tree())
    assert stage.run().status == 0
    before, first, seen = _figures(stage), stage.lines(), list[str]()
    stage.store.path.unlink()
    ids = sorted({cell.victim_id for cell in stage.cells()})
    for number, suffix in enumerate(SUFFIXES):
        names = [stage.cache / "victims" / f"{name}.{suffix}" for name in (ids if number % 2 else reversed(ids))]
        damage(names[0], names[1], chance)
    ended = stage.run()
    assert ended.status == 0, ended
    assert _figures(stage) == before
    assert len(stage.lines()) == len(first)
    seen = stage.shorten(ended.out)[1:2] + stage.shorten(ended.out)[-3:-2]
    note(
        fault, f"Of two victims, each file in turn ({', '.join(SUFFIXES)}) {how}, and the sweep is computed anew.",
        stage, seen, "The victim or its scores are made again; every figure is what it was before.",
        injected=len(SUFFIXES), others=stage.union().statuses["ok"],
    )  # fmt: skip


def _figures(stage: Stage) -> dict[str, tuple[object, ...]]:
    return {name: _figure(record) for name, record in stage.records().items()}


def _figure(record: Record) -> tuple[object, ...]:
    victim = record.victim
    return record.status, record.acc, record.asr, record.ra, victim and (victim.acc, victim.asr, victim.ra)
