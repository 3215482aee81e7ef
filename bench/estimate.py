"""How long a sweep will take, from what records of earlier runs took: for planning, not for comparing anything."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adapters import defenses
from adapters.errors import UserError
from adapters.protocols import Defense
from bench.cells import Cell, content_hash
from bench.preflight import Checked
from bench.provenance import is_gpu
from bench.records import Record, RecordStore
from bench.scoring import TRACE_IMAGES

FORWARD_SHARE = 1 / 3
"""Of the work of a training step on one image that scoring does: its forward pass."""


class Estimate(NamedTuple):
    """Seconds of one worker; ``unknown``: how many cells and victims no record says anything of."""

    seconds: float
    unknown: int


class Pace:
    """Seconds for a unit of work, as records tell them. The unit is a multiplication of the network's forward pass.

    A record of the same defense with the same settings counts before one that differs in numbers alone, and that before
    any other of the defense; of several, the median does. Work grows as the defense says (``Defense.work``: with its
    rounds, say, or the steps of its search) and with the network's weight.
    """

    def __init__(self, records: Iterable[Record], checked: Checked) -> None:
        self._checked = checked
        self._defenses: dict[str, Defense | None] = {}
        self._defense: dict[str, list[float]] = defaultdict(list)
        self._rounds: dict[str, list[float]] = defaultdict(list)
        training: dict[str, float] = {}
        for record in records:
            cell = record.cell
            if record.victim is None or (cell.dataset, cell.model) not in checked.weights:
                continue
            if record.victim.seconds and cell.training:
                training[record.victim.id] = record.victim.seconds / self._training(cell)
            if record.seconds is not None:
                for key in self._keys(cell):
                    self._defense[key].append(record.seconds / self._work(cell))
                    self._rounds[key].append(len(record.rounds))
        self._train = statistics.median(training.values()) if training else None

    def victim(self, cell: Cell) -> float | None:
        """Seconds to train the victim of ``cell``; 0 for one from a checkpoint, None where no record tells."""
        if cell.training is None:
            return 0.0
        return None if self._train is None else self._train * self._training(cell)

    def cell(self, cell: Cell) -> float | None:
        """Seconds to defend and to score, round by round; None where no record tells of the defense.

        Scoring is timed by the training of victims, and left out where no record tells of that.
        """
        key = next((key for key in self._keys(cell) if key in self._defense), None)
        if key is None:
            return None
        images = self._checked.sizes[cell.dataset].scoring
        scored = images + statistics.median(self._rounds[key]) * min(images, TRACE_IMAGES)
        scoring = FORWARD_SHARE * (self._train or 0.0) * scored * (1 + len(cell.targets)) * self._weight(cell)
        return statistics.median(self._defense[key]) * self._work(cell) + scoring

    def total(self, cells: Sequence[Cell], victims: Sequence[Cell]) -> Estimate:
        """Of training ``victims`` and running ``cells``."""
        found = [*map(self.victim, victims), *map(self.cell, cells)]
        known = [one for one in found if one is not None]
        return Estimate(sum(known), len(found) - len(known))

    def _keys(self, cell: Cell) -> tuple[str, ...]:
        """From the closest to the loosest sense in which two cells' defenses are the same."""
        settings = content_hash(cell.defense)
        words = content_hash({key: value for key, value in cell.defense.items() if isinstance(value, str | bool)})
        return f"{settings} {cell.dataset} {cell.model} {cell.clean_size}", settings, words, str(cell.defense["name"])

    def _training(self, cell: Cell) -> float:
        assert cell.training is not None
        copies = len(cell.targets) if cell.mix == "united" else 1
        return self._weight(cell) * self._checked.sizes[cell.dataset].training * copies * cell.training.epochs

    def _work(self, cell: Cell) -> float:
        sizes, defense = self._checked.sizes[cell.dataset], self._built(cell.defense)
        if defense is None:
            return self._weight(cell) * (cell.clean_size or 1)
        images = sizes.training if defense.needs_training_data else cell.clean_size or 1
        return self._weight(cell) * max(1.0, defense.work(images, sizes.classes))

    def _built(self, settings: Mapping[str, Any]) -> Defense | None:
        """None for a record's that another version has written, or a plug-in that is not here."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self._defenses:
            try:
                self._defenses[key] = defenses.build(dict(settings))
            except UserError:
                self._defenses[key] = None
        return self._defenses[key]

    def _weight(self, cell: Cell) -> float:
        return self._checked.weights[cell.dataset, cell.model]


def earlier(folders: Iterable[Path], *, gpu: bool | None = None) -> list[Record]:
    """The records of every results folder directly under ``folders``; one that cannot be read is passed over.

    ``gpu``: without those computed on a CPU, or without those computed on a GPU; None: all. Of a cell recorded twice,
    the last.
    """
    found: dict[str, Record] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/records.jsonl")):
        try:
            read = RecordStore(path.parent).read()
        except UserError:
            continue
        found |= {record.id: record for record in read if gpu is None or _may_be_of(record, gpu)}
    return list(found.values())


def _may_be_of(record: Record, gpu: bool) -> bool:
    return record.provenance is None or is_gpu(record.provenance.device) == gpu
