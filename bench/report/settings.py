"""Axes held fixed: the rows at one C_delta, at the paper's setting, or along one axis; each with notes that say so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import published
from bench.report import names
from bench.report.groups import by
from bench.report.rows import Row

_OTHER = {"poison_ratio": "clean_size", "clean_size": "poison_ratio"}
_PAPERS = {"poison_ratio": published.POISON_RATIO, "clean_size": published.CLEAN_SIZE, "radius": published.RADIUS}


def setting(rows: Iterable[Row], key: str, of_the_paper: float) -> float | None:
    """The value of an axis that a table holds fixed: the paper's if some record has it, else the largest."""
    known = {value for row in rows if (value := getattr(row, key)) is not None}
    return of_the_paper if of_the_paper in known else max(known, default=None)


def at_one_radius(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows at one C_delta, and a note that says so where there are others."""
    radius = setting(rows, "radius", published.RADIUS)
    kept = [row for row in rows if row.radius in (None, radius)]
    note = f"At Cδ = {names.plain(radius)}; the other radii are in the heat maps and among the records."
    return kept, [note] if len(kept) < len(rows) else []


def at_the_papers(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows at one poison ratio, one n and one C_delta: the paper's where records have it."""
    kept, notes = at_one_radius(rows)
    ratio = setting(kept, "poison_ratio", published.POISON_RATIO)
    size = setting(kept, "clean_size", published.CLEAN_SIZE)
    there = [row for row in kept if row.poison_ratio in (None, ratio) and row.clean_size in (None, size)]
    if len(there) < len(kept):
        at = [f"poison ratio {names.ratio_name(ratio)}"] if ratio is not None else []
        notes = [*notes, f"At {' and '.join([*at, f'n = {names.plain(size)}'])}; other settings are further down."]
    return there, notes


def along(scored: Sequence[Row], axis: str) -> tuple[list[Row], list[str]]:
    """One-trigger rows of victims that occur with several values of ``axis``, the other axes held fixed; and notes."""
    rows = [row for row in scored if row.one_trigger]
    notes: list[str] = []
    if axis != "radius":
        rows, notes = at_one_radius(rows)
    for other in ("poison_ratio", "clean_size") if axis == "radius" else (_OTHER[axis],):
        at = setting(rows, other, _PAPERS[other])
        rows = [row for row in rows if getattr(row, other) in (None, at)]
    alike = by(rows, lambda row: row.victim_but(*(("poison_ratio",) if axis == "poison_ratio" else ())))
    several = [each for each in alike.values() if len({getattr(row, axis) for row in each} - {None}) > 1]
    return [row for each in several for row in each], notes
