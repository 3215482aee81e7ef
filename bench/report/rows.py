"""``Row``: one record as the report reads it. Reading forgives: a stranger's file may hold anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from adapters.errors import UserError
from bench.cells import NOT_OF_THE_VICTIM, content_hash
from bench.records import FILE, RecordStore
from bench.report.labels import File, Images, apart, attack_label, images_of
from bench.report.values import as_list, canonical, mapping, misnamed, number, possible, text, tidy

SCORED = frozenset({"ok", "no_trigger_detected"})
"""The statuses whose figures enter a mean. Every other record is listed with its reason instead."""

BROKEN_DOWN = frozenset({"diverged", "timeout"})
"""The statuses of a defense that ran and came to no good end."""

FIGURES = ("acc", "asr", "ra", "der", "error_gap", "seconds", "seconds_to_effect", "peak_memory_bytes")

EVASION = "evasion_accuracy"
"""Begins the names of accuracies under attack, which end with its radius: one of each, since they do not compare."""


class TriggerFigures(NamedTuple):
    """One of a record's triggers: ``attack`` and ``target`` as the cell names them; rates in [0, 1]."""

    attack: str
    target: str
    asr: float | None
    ra: float | None


NOT_OF_ANY = ("seed", "run", "tsne_images")
"""Keys of a cell that tell repetitions apart, or ask for more to be measured."""

MEASURED_MORE = ("tsne_images", "evasion_radius", "min_asr")
"""Keys of a cell by which a run computes nothing else: cells that differ in them alone are one run."""


@dataclass(frozen=True)
class Row:
    """A record with every field of the type it should have; what is missing, of another type or impossible: None or "".

    ``figures`` holds the finite numbers among ``FIGURES``, ``passes.forward`` / ``passes.backward``, as
    ``forward`` and ``backward``, and ``EVASION``; ``before`` those of the victim; ``intervals`` the 95 % intervals.
    """

    id: str
    schema: str
    status: str
    reason: str
    cell: Mapping[str, Any]
    defense: str
    settings: Mapping[str, Any]
    dataset: str
    model: str
    attack: str
    target: str
    checkpoint: str
    poison_ratio: float | None
    clean_size: float | None
    radius: float | None
    seed: int
    before: Mapping[str, float]
    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    rounds: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any]
    split: str
    data: str = ""
    """What the data set held, where the record tells."""
    triggers: tuple[TriggerFigures, ...] = ()
    """Each trigger by itself, after the defense; ``triggers_before`` on the victim."""
    triggers_before: tuple[TriggerFigures, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    tsne: Mapping[str, Any] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()
    """The sweep files it belongs to, where the folder tells (``sweep_files``)."""
    left_out: tuple[str, ...] = ()
    """The figures whose values cannot be (``values.possible``)."""
    misnamed: bool = False
    """Whether the id is not that of the cell."""

    @property
    def scored(self) -> bool:
        """Whether it has both figures that a defense of a backdoored model is judged by."""
        return self.measured and "asr" in self.figures

    @property
    def measured(self) -> bool:
        return self.status in SCORED and "acc" in self.figures

    @property
    def tried(self) -> bool:
        """Whether a defense ran on a backdoored model, to a good end or not."""
        return self.scored or (self.status in BROKEN_DOWN and not self.is_clean)

    @property
    def is_clean(self) -> bool:
        """Whether the model was never poisoned: it has an ACC, and no ASR."""
        return not self.cell.get("attack") and not self.cell.get("victim")

    @property
    def victim_key(self) -> str:
        """What decides the poisoned model, but for the seed."""
        return self.victim_but()

    def victim_but(self, *keys: str) -> str:
        """The same without ``keys``: equal for victims that differ in them alone, or in the paths of files."""
        left_out = {*NOT_OF_THE_VICTIM, *NOT_OF_ANY, *keys}
        return content_hash({key: value for key, value in self.cell.items() if key not in left_out})

    @property
    def one_trigger(self) -> bool:
        return not isinstance(self.cell.get("attack"), list)

    @property
    def changed_trigger(self) -> bool:
        """Whether a trigger has settings that are not its defaults."""
        attack = _attack(self.cell)
        rows = [mapping(each).get("attack") for each in attack] if isinstance(attack, list) else [attack]
        return any("name" in mapping(each) for each in rows)


def one_each(rows: Iterable[Row]) -> list[Row]:
    """Each run once, with all that was measured of it, where records of it differ in ``MEASURED_MORE`` alone.

    A run and what it was recorded again for would else be two repetitions with nothing between them.
    """
    found: dict[str, Row] = {}
    for row in rows:
        key = content_hash({name: value for name, value in row.cell.items() if name not in MEASURED_MORE})
        found[key] = _merged(found[key], row) if key in found else row
    return list(found.values())


def _more(row: Row) -> list[Any]:
    return [row.cell.get(name) for name in MEASURED_MORE if name != "min_asr"]


def _merged(one: Row, other: Row) -> Row:
    first, second = sorted((one, other), key=lambda row: (not row.scored, sum(map(bool, _more(row)))))
    if first.scored != second.scored:
        return replace(first, parts=first.parts | second.parts)
    return replace(
        first,
        figures={**second.figures, **first.figures},
        intervals={**second.intervals, **first.intervals},
        tsne=first.tsne or second.tsne,
        parts=first.parts | second.parts,
    )


class Reading(NamedTuple):
    rows: list[Row]
    unreadable: int
    """Lines that hold no record, such as the last line of a run that was killed while it wrote."""


def read(folder: Path) -> Reading:
    """The records of ``folder/records.jsonl`` in a fixed order; of two with one id the later stands.

    Raises ``UserError`` if there is no such file or no record in it.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"RESULTS: found {str(folder)!r}; expected a folder that holds {FILE}")
    trees, damaged = RecordStore(folder).objects()
    found = [from_record(tree) for tree in trees if isinstance(tree.get("cell"), dict)]
    rows = {row.id: row for row in named_apart(found)}
    if not rows:
        raise UserError(f"RESULTS: found no record in {str(path)!r}; expected at least one line")
    return Reading(sorted(rows.values(), key=_order), damaged + len(trees) - len(found))


def named_apart(rows: Sequence[Row]) -> list[Row]:
    """Checkpoints, and images, that share a file's name and are not one file are called by their folders too."""
    checkpoints = apart(_checkpoint(row.cell) for row in rows)
    images = images_of(_attack(row.cell) for row in rows)
    return [_called(row, checkpoints, images) for row in rows]


def _called(row: Row, checkpoints: Mapping[str, str], images: Images) -> Row:
    labels = [attack_label(mapping(part).get("attack"), images) for part in as_list(row.cell.get("attack"))]
    before, after = (
        tuple(each._replace(attack=label) for each, label in zip(found, labels, strict=False))
        for found in (row.triggers_before, row.triggers)
    )
    return replace(
        row,
        checkpoint=checkpoints[_checkpoint(row.cell)[0]],
        attack=attack_label(_attack(row.cell), images),
        triggers=after,
        triggers_before=before,
    )


def _checkpoint(cell: Mapping[str, Any]) -> File:
    victim = mapping(cell.get("victim"))
    return text(victim.get("checkpoint")), text(victim.get("digest"))


def _attack(cell: Mapping[str, Any]) -> object:
    """The cell's attack, or the trigger that its victim is said to answer to."""
    victim = mapping(cell.get("victim"))
    return victim.get("trigger") if victim else cell.get("attack")


def from_record(record: Mapping[str, Any]) -> Row:
    """A ``Row`` of one record (a JSON object as the schema says; unknown keys are ignored)."""
    edited = misnamed(record)
    record, left_out = possible(mapping(tidy(record)))
    cell = mapping(record.get("cell"))
    defense = mapping(cell.get("defense"))
    victim = mapping(cell.get("victim"))
    settings = {key: value for key, value in defense.items() if key != "name"}
    evasion = _evasion(record, number(cell.get("evasion_radius")))
    if cell.get("time_limit") is not None:
        settings["time_limit"] = cell["time_limit"]
    return Row(
        id=text(record.get("id")) or canonical(cell),
        schema=text(record.get("schema")),
        status=text(record.get("status")) or "unknown",
        reason=text(record.get("reason")),
        cell=cell,
        defense=text(defense.get("name")) or "unknown",
        settings=settings,
        dataset=text(cell.get("dataset")),
        model=text(cell.get("model")),
        attack=attack_label(_attack(cell)),
        target=text(victim.get("target") if victim else cell.get("target")),
        checkpoint=Path(_checkpoint(cell)[0]).name,
        poison_ratio=number(cell.get("poison_ratio")),
        clean_size=number(cell.get("clean_size")),
        radius=number(cell.get("radius")),
        seed=int(number(cell.get("seed")) or 0),
        before=_numbers(mapping(record.get("victim"))),
        figures=_numbers(record, FIGURES) | _numbers(mapping(record.get("passes")), ("forward", "backward")) | evasion,
        intervals=_intervals(record, "".join(evasion)),
        rounds=tuple(mapping(each) for each in as_list(record.get("rounds"))),
        provenance=mapping(record.get("provenance")),
        split=canonical(record.get("split", 1)),
        data=text(record.get("data")),
        triggers=_triggers(cell, record.get("triggers")),
        triggers_before=_triggers(cell, mapping(record.get("victim")).get("triggers")),
        details=mapping(record.get("details")),
        tsne=mapping(record.get("tsne")),
        left_out=left_out,
        misnamed=edited,
    )


def _triggers(cell: Mapping[str, Any], found: object) -> tuple[TriggerFigures, ...]:
    """A record lists its triggers in the cell's order."""
    attacks = [mapping(part) for part in as_list(cell.get("attack"))]
    rows = [mapping(each) for each in as_list(found)]
    if len(rows) != len(attacks):
        return ()
    return tuple(
        TriggerFigures(
            attack_label(attack.get("attack")),
            text(attack.get("target")),
            number(row.get("asr")),
            number(row.get("ra")),
        )
        for attack, row in zip(attacks, rows, strict=True)
    )


def _order(row: Row) -> tuple[Any, ...]:
    axes = (row.poison_ratio, row.clean_size, row.radius)
    numeric = tuple((axis is not None, axis or 0.0) for axis in axes)
    return (row.dataset, row.model, row.attack, row.target, *numeric, row.defense, row.seed, row.id)


def _numbers(tree: Mapping[str, Any], keys: Iterable[str] | None = None) -> dict[str, float]:
    found = ((key, number(tree.get(key))) for key in (tree if keys is None else keys))
    return {key: value for key, value in found if value is not None}


def _evasion(record: Mapping[str, Any], radius: float | None) -> dict[str, float]:
    value = number(record.get(EVASION))
    return {} if value is None or radius is None else {f"{EVASION} {radius:g}": value}


def _intervals(record: Mapping[str, Any], evasion: str) -> dict[str, tuple[float, float]]:
    """By the names of the figures. ``evasion``: that of the accuracy under attack, or an empty text."""
    found = {}
    for metric in ("acc", "asr", "ra", "der", "error_gap", EVASION):
        ends = [number(end) for end in as_list(record.get(f"{metric}_interval"))]
        name = evasion if metric == EVASION else metric
        if name and len(ends) == 2 and ends[0] is not None and ends[1] is not None:
            found[name] = (ends[0], ends[1])
    return found
