"""How many times the bounds of Theorems 2 and 3 are the measured gap, from the records of ``bench.theory``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.report.names import percent
from bench.theory.gap_figures import looseness, times_name

Row = dict[str, Any]
MISSING = "*No gaps are committed for this table yet.*\n"
STUDIES = {
    "linear_gap": "Theorem 2, {source}",
    "network_gap_clean": "Theorem 3, over n",
    "network_gap_width": "Theorem 3, over W",
}


def table(folder: Path) -> str:
    """A Markdown table: a line a study, medians over its records; ``MISSING`` where there is none."""
    lines = [line for stem, name in STUDIES.items() for line in _lines(folder / f"{stem}.json", name)]
    if not lines:
        return MISSING
    heads = ("Study", "Records", "Gap", "Derived bound", "bound / gap", "Printed bound", "bound / gap")
    rule = "| --- |" + " ---: |" * (len(heads) - 1)
    told = "Gap and bounds in percent, medians over records; bound / gap is the median of the records' ratios."
    return "\n".join([f"| {' | '.join(heads)} |", rule, *lines, "", told]) + "\n"


def _lines(path: Path, name: str) -> Iterator[str]:
    if not path.is_file():
        return
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for source in dict.fromkeys(row.get("source") for row in rows):
        chosen = [row for row in rows if row.get("source") == source]
        cells = [name.format(source=source), str(len(chosen)), _median(chosen, "gap")]
        for form in ("bound", "printed"):
            cells += [_median(chosen, form), f"{times_name(looseness(chosen, form))}×"]
        yield f"| {' | '.join(cells)} |"


def _median(rows: Sequence[Row], key: str) -> str:
    value = statistics.median(row[key] for row in rows)
    return percent(value) if value < 100 else times_name(100 * value)
