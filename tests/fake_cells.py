"""Cells and records made by hand."""

from __future__ import annotations

from typing import Any

from bench.cells import Cell
from bench.records import Record


def cell(defense: str = "ibau", /, **changes: Any) -> Cell:
    tree = {
        "dataset": "digits",
        "model": "simplified_vgg",
        "attack": "badnets",
        "target": 8,
        "poison_ratio": 0.05,
        "training": {"epochs": 3},
        "clean_size": 150,
        "radius": 10.0 if defense == "ibau" else None,
        "defense": {"name": defense},
    }
    return Cell.model_validate({**tree, **changes})


def record(defense: str = "ibau", /, *, status: Any = "ok", reason: str | None = None, **changes: Any) -> Record:
    made = cell(defense, **changes)
    return Record(id=made.id, cell=made, status=status, reason=reason, acc=0.9, asr=0.1, ra=0.8, der=0.9, seconds=1.5)
