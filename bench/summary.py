"""The table a sweep ends with: means over the cells that share a defense, and those that share a value of an axis.

What is scored, which values count, and what no mean may mix, is as in the report.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from bench.records import Record
from bench.report.groups import Group, groups
from bench.report.rows import Row, from_record, named_apart

METRICS = (
    ("ACC", "acc", 100.0),
    ("ASR", "asr", 100.0),
    ("RA", "ra", 100.0),
    ("DER", "der", 100.0),
    ("s", "seconds", 1),
)
MAX_GROUPS = 12
"""Axes with more values than this are left to the report."""
AXES = ("model", "attack", "target", "poison_ratio", "victim", "clean_size", "radius")
CLEAN = "clean models"


class _Told(NamedTuple):
    """By record id: what its defense is called, and its row."""

    names: Mapping[str, str]
    rows: Mapping[str, Row]


def table(records: Sequence[Record]) -> Table:
    """Mean ± standard deviation over cells, in percent and seconds: over all cells, then along each axis.

    Where there are several data sets, contents of one or ways to split it, this is done for each by itself, under its
    name. Models that were never poisoned are in no mean with those that were: they have a line of their own.
    """
    view = Table(title="Mean ± standard deviation over cells (%, seconds)", title_justify="left")
    for name in ("axis", "value", "defense", "cells"):
        view.add_column(name, justify="right" if name == "cells" else "left")
    for name, _, _ in METRICS:
        view.add_column(name, justify="right")
    by_id = {record.id: record for record in records}
    found = groups(named_apart([_row(record) for record in records]))
    parts = [(group.title, *_measured(group, by_id)) for group in found]
    parts = [part for part in parts if part[1] or part[2]]
    names = _defense_names([record for _, scored, clean in parts for record in (*scored, *clean)])
    told = _Told(names, {row.id: row for group in found for row in group.rows})
    for heading, scored, clean in parts:
        _section(view, heading if len(parts) > 1 else "all", [("", scored)], told)
        _section(view, f"{heading} · {CLEAN}" if len(parts) > 1 else CLEAN, [("", clean)], told)
        _sections_by_axis(view, scored, told)
    return view


def _row(record: Record) -> Row:
    return from_record(record.model_dump(mode="json", by_alias=True, exclude={"rounds", "details", "tsne"}))


def _measured(group: Group, records: Mapping[str, Record]) -> tuple[list[Record], list[Record]]:
    """Those of poisoned models, and those of clean ones."""
    found = [row for row in group.rows if row.measured]
    poisoned, clean = ([records[row.id] for row in found if row.is_clean is one] for one in (False, True))
    return poisoned, clean


def _sections_by_axis(view: Table, scored: Sequence[Record], told: _Told) -> None:
    for axis in AXES:
        values: dict[Any, list[Record]] = {}
        for record in scored:
            value = _value(record, axis, told.rows[record.id])
            if value not in (None, ""):
                values.setdefault(value, []).append(record)
        if 1 < len(values) <= MAX_GROUPS:
            rows = sorted(values.items(), key=lambda item: (isinstance(item[0], str), item[0]))
            _section(view, axis, [(_show(value), members) for value, members in rows], told)


def outcome(records: Iterable[Record]) -> str:
    """How many cells ended how: "41 ok, 4 attack_failed"."""
    counts = Counter(record.status for record in records)
    return ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "no cell"


def _section(view: Table, axis: str, rows: Sequence[tuple[str, list[Record]]], told: _Told) -> None:
    for value, members in rows:
        by_defense: dict[str, list[Record]] = {}
        for record in members:
            by_defense.setdefault(told.names[record.id], []).append(record)
        for name in sorted(by_defense):
            own = by_defense[name]
            cells = [
                _mean([told.rows[record.id].figures.get(key) for record in own], scale) for _, key, scale in METRICS
            ]
            view.add_row(axis, value, name, str(len(own)), *cells)
            axis = value = ""
    view.add_section()


def _mean(values: Sequence[float | None], scale: float) -> str:
    known = [value * scale for value in values if value is not None]
    if not known:
        return "–"
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.1f}"
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
    return f"{mean:.1f} ± {spread:.1f}"


def _value(record: Record, axis: str, row: Row) -> Any:
    """The record's value of the axis; attacks and checkpoints as the report calls them."""
    called = {"attack": row.attack, "victim": row.checkpoint}
    return called[axis] if axis in called else getattr(record.cell, axis)


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _defense_names(records: Sequence[Record]) -> dict[str, str]:
    """By record id: the defense, with those settings that differ between defenses of its name."""
    settings: dict[str, dict[str, set[str]]] = {}
    for record in records:
        known = settings.setdefault(record.cell.defense["name"], {})
        for key, value in record.cell.defense.items():
            known.setdefault(key, set()).add(repr(value))
    names = {}
    for record in records:
        defense = record.cell.defense
        differing = [key for key, values in settings[defense["name"]].items() if len(values) > 1]
        extra = ", ".join(f"{key}={value}" for key in differing if (value := defense.get(key)) is not None)
        names[record.id] = f"{defense['name']} ({extra})" if extra else str(defense["name"])
    return names
