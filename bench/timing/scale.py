"""``--bench-scale``: how much the suite measures, and on which cells; made-up records to measure the harness with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import spec
from bench.cells import Cell
from bench.records import Provenance, Record

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


class Scale(NamedTuple):
    """``sweep``: whose cells are run to effect. ``rounds``: timed repetitions of the engine's and the harness's parts.

    ``budget``: about how many seconds the timed repetitions of one defense may take, in all; at least one is made.
    """

    sweep: str
    rounds: int
    budget: float

    def cells(self, data_root: Path, overrides: Sequence[str] = ()) -> list[Cell]:
        """Each defense on each victim, once: the first repetition of the sweep's cells."""
        plan = spec.load(SWEEPS / self.sweep, overrides, data_root)
        return [cell for cell in plan.cells if cell.seed == 0]


SCALES = {
    "small": Scale("timing.yaml", rounds=7, budget=20.0),
    "paper": Scale("paper/table6.yaml", rounds=30, budget=120.0),
}


def one_a_dataset(cells: list[Cell]) -> list[Cell]:
    """The first cell of each data set: what parts are measured on."""
    return list({cell.dataset: cell for cell in reversed(cells)}.values())[::-1]


def name(cell: Cell) -> str:
    """A cell in a benchmark's name: data set, attack, defense and the settings that the sweep varies."""
    defense: dict[str, Any] = cell.defense
    parts = [cell.dataset, str(cell.attack), str(defense["name"]), str(defense.get("recipe") or "")]
    return "-".join(part for part in parts if part)


MADE_BY = Provenance(
    commit="0" * 40, dirty=False, python="3.11", torch="2.6", package="0", device="made up", threads=1,
    started="2026-01-01T00:00:00+00:00",
)  # fmt: skip


def made_record(cell: Cell, seconds: float) -> Record:
    """A record of ``cell`` that nothing was run for, about as long as a real one."""
    one = {"acc": 0.98, "asr": 0.01, "images": 898, "delta_norm": 9.9, "loss": 0.614098012, "residual": None}
    rounds = tuple({**one, "inner_status": "ascended", "index": k, "elapsed_seconds": 1.0 + k} for k in range(5))
    return Record(
        id=cell.id, cell=cell, status="ok", acc=0.98, asr=0.01, ra=0.97, der=0.99, seconds=seconds, rounds=rounds,
        provenance=MADE_BY,
    )  # fmt: skip
