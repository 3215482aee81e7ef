"""A table as plain values, before it is HTML, Markdown, LaTeX or CSV; and the summary by defense."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.report import effectiveness, given, marks, names
from bench.report.groups import RATES, Estimate, by, estimate, ordered
from bench.report.rows import EVASION, Row


@dataclass(frozen=True)
class Value:
    """A table cell: the figure, what stands small beneath it, the paper's figure and marks, a key to sort by.

    ``estimate`` is the figure with its interval as numbers, for those who read the table with a program.
    """

    text: str
    note: str = ""
    published: str = ""
    marks: tuple[marks.Mark, ...] = ()
    sort: float | str | None = None
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Head:
    text: str
    over: str = ""
    """The heading above it, shared with its neighbours."""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    heads: tuple[Head, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def bands(self) -> list[tuple[str, int]]:
        """The upper row of headings: text and how many columns it spans."""
        found: list[tuple[str, int]] = []
        for head in self.heads:
            if found and head.over and found[-1][0] == head.over:
                found[-1] = (head.over, found[-1][1] + 1)
            else:
                found.append((head.over, 1))
        return found if any(text for text, _ in found) else []


@dataclass(frozen=True)
class Titled:
    """A table with its heading. ``stem`` names it in CSV; ``beside`` holds what else was measured on its cells."""

    stem: str
    title: str
    table: Table
    beside: Table | None = None


TO_EFFECT = "seconds_to_effect"
TO_EFFECT_MEANING = "To effect: of the cells whose returned model has it."
MEASURES: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("RA", "ra", names.percent),
    ("DER", "der", names.percent),
    ("Error gap", "error_gap", names.percent),
    ("Seconds", "seconds", names.seconds_name),
    ("To effect", TO_EFFECT, names.seconds_name),
    ("Peak memory", "peak_memory_bytes", names.bytes_name),
    ("Forward", "forward", names.count_name),
    ("Backward", "backward", names.count_name),
)
"""What is told beside ACC and ASR: heading, figure, how it is written."""


def measures(rows: Iterable[Row]) -> tuple[tuple[str, str, Callable[[float | None], str]], ...]:
    """``MEASURES``, and the accuracies under attack that some of the rows have."""
    found = sorted({key for row in rows for key in row.figures if key.startswith(EVASION)})
    return (*MEASURES, *((names.metric_name(key), key, names.percent) for key in found))


def summary(found: Sequence[Row], labels: Mapping[str, str], order: Sequence[str] | None = None) -> Table:
    """One row a label: means over its scored records with the smallest and the largest value beneath.

    ``order`` is that of the rows; by default the paper's order of defenses.
    """
    devices = {str(row.provenance.get("device", "")) for row in found if row.scored}
    figures = (("ACC", "acc", names.percent), ("ASR", "asr", names.percent), *measures(found))
    rows = []
    members = by(found, lambda row: labels[row.id])
    for label in order or ordered(found, labels):
        scored = [row for row in members[label] if row.scored]
        cells = Value(f"{len(scored)}", _besides(members[label]), sort=len(scored))
        seeds = len({row.seed for row in scored})
        values = [measured(scored, metric, write) for _, metric, write in figures]
        rows.append((Value(label), cells, Value(str(seeds), sort=seeds), *values))
    notes = [f"Mean over the scored cells{spread(rows)}. Rates in percent. {TO_EFFECT_MEANING}"]
    notes += given.note(found)
    if len(devices) > 1:
        notes.append(f"Times and memory come from {len(devices)} devices: compare them only within one.")
    heads = (Head("Defense", numeric=False), Head("Cells"), Head("Seeds"), *(Head(name) for name, _, _ in figures))
    return Table(heads, tuple(rows), tuple(notes))


def _besides(rows: Sequence[Row]) -> str:
    """How many of a defense's records are in no mean: a clean model, which has no ASR, is no failure."""
    clean = sum(row.measured and row.is_clean for row in rows if not row.scored)
    missing = sum(not row.scored for row in rows) - clean
    told = [f"{missing} not scored"] if missing else []
    return ", ".join([*told, f"{clean} of a clean model"] if clean else told)


def measured(rows: Sequence[Row], metric: str, write: Callable[[float | None], str]) -> Value:
    """A figure's mean with the range seen beneath it.

    Seconds to effect are those of the rows alone whose returned model has it; beneath them stands how many these are,
    where they are not all.
    """
    told = [row for row in rows if effectiveness.effective([row])] if metric == TO_EFFECT else rows
    found = estimate(told, metric)
    if found is None:
        return Value("–")
    least, most = write(found.least), write(found.most)
    span = f"{_without_unit(least, most)}–{most}" if least != most else ""
    of = f"{found.count} of {len(rows)}" if metric == TO_EFFECT and found.count < len(rows) else ""
    return Value(write(found.mean), ", ".join(filter(None, (span, of))), sort=found.mean, estimate=found)


def spread(rows: Iterable[Sequence[Value]]) -> str:
    """What stands beneath means, as the end of a sentence on them; nothing where nothing does."""
    return "; smallest to largest beneath" if any(each.estimate and each.note for row in rows for each in row) else ""


def _without_unit(least: str, most: str) -> str:
    """``least`` without the unit that ``most`` names too: 41–45 k."""
    number, _, unit = least.partition(" ")
    return number if unit and most.endswith(f" {unit}") else least


def beneath(found: Estimate, metric: str, digits: int = 1) -> str:
    """What stands under a mean: its 95 % interval and, where there are several, the number of repetitions."""
    assert metric in RATES
    note = names.percent_range(found.low, found.high, digits)
    return f"{note} ×{found.count}".strip() if found.count > 1 else note
