"""``sweep.json`` beside the records: which sweep files they belong to, and what a budget left out of these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.report.rows import Row
from bench.report.values import as_list, tidy

FILE = "sweep.json"
STUDIES = ("table", "figure", "c_delta", "ablation")
"""How the names of sweep files begin that belong to one table or figure of the paper, and to no other."""


class SweepFiles(NamedTuple):
    """``cells``: name of a sweep file to the ids of its records. ``reductions``: what its budget left out, in words,
    and what ``--set`` changed after that, or without one."""

    budget: str
    cells: dict[str, frozenset[str]]
    reductions: tuple[tuple[str, str], ...]


def read(folder: Path) -> SweepFiles:
    """What ``folder`` tells of its sweep files: nothing, if there is no such file or something else in it."""
    try:
        tree = tidy(json.loads((folder / FILE).read_bytes()))
    except (OSError, ValueError, RecursionError):
        tree = {}
    known = tree if isinstance(tree, dict) else {}
    listed = known.get("parts")
    parts = [part for part in listed if isinstance(part, dict)] if isinstance(listed, list) else []
    cells: dict[str, frozenset[str]] = {}
    for part in parts:  # of one name, where the same file was run with other overrides
        name = _text(part.get("name"))
        cells[name] = cells.get(name, frozenset()).union(map(str, as_list(part.get("cells"))))
    reductions = dict.fromkeys((_text(part.get("name")), _reduced(part)) for part in parts)
    return SweepFiles(_text(known.get("budget")), cells, tuple(each for each in reductions if each[1]))


def _reduced(part: Mapping[str, Any]) -> str:
    words, overrides = _text(part.get("reductions")), list(filter(None, map(_text, as_list(part.get("overrides")))))
    told = ", ".join(overrides)
    if words:
        return f"{words} (then set: {told})" if told else words
    return f"Set on the command line: {told}." if told else ""


def assign(rows: Sequence[Row], files: SweepFiles) -> list[Row]:
    """The rows with the sweep files they belong to."""
    belongs = {row.id: {name for name, ids in files.cells.items() if row.id in ids} for row in rows}
    return [replace(row, parts=frozenset(belongs[row.id])) if belongs[row.id] else row for row in rows]


def of(rows: Sequence[Row], *names: str) -> list[Row]:
    """The rows of the sweep files called ``names``; if there is none, those of no table and no figure."""
    chosen = [row for row in rows if row.parts & set(names)]
    return chosen or [row for row in rows if not any(part.startswith(STUDIES) for part in row.parts)]


def of_any(rows: Sequence[Row], *names: str) -> list[Row]:
    """As ``of``, and where that leaves none, all rows: for what every study can fill."""
    return of(rows, *names) or list(rows)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
