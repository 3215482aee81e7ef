"""The report as CSV, for those who go on with a program: every figure of every table, and every record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from bench.report.page import Page
from bench.report.tables import Table, Value

FIGURES_HEAD = (
    "group", "table", "row", "column", "value", "low", "high", "runs", "least", "most", "text", "published", "marks",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def figures(page: Page) -> str:
    """``tables.csv``: one line a figure. ``value``, ``low``, ``high`` as records hold them: rates in [0, 1], seconds,
    bytes; ``text`` and ``published`` as the page shows them, in percent; ``marks`` by name."""
    lines: list[Sequence[object]] = [FIGURES_HEAD]
    for section in page.groups:
        for name, table in section.tables:
            lines += [(section.title, name, *line) for line in _figures(table)]
    return _written(lines)


def records(page: Page) -> str:
    """``records.csv``: one line a record, its numbers without rounding, shares in [0, 1]; ``settings`` as JSON."""
    table = page.records.table
    heads = ["id", *(head.text for head in table.heads), *(name for name, _ in page.records.constants)]
    heads += ["settings", "reason"]
    lines: list[Sequence[object]] = [heads]
    shared = [value for _, value in page.records.constants]
    for row, details in zip(table.rows, page.records.details, strict=True):
        values = [value.text if value.sort is None else value.sort for value in (*row, *shared)]
        told = ["" if value == "–" else value for value in values]
        lines.append([details.id, *told, details.settings, details.reason])
    return _written(lines)


def _figures(table: Table) -> Iterator[Sequence[object]]:
    """Every cell right of the words that name its row."""
    named = next((place for place, head in enumerate(table.heads) if head.numeric), len(table.heads))
    for row in table.rows:
        name = " | ".join(_name(value) for value in row[:named] or row[:1])
        for head, value in list(zip(table.heads, row, strict=True))[max(1, named) :]:
            column = " ".join(part for part in (head.over, head.text) if part)
            found = value.estimate
            numbers: Iterable[object] = (value.sort, "", "", "", "", "")
            if found is not None:
                numbers = (found.mean, found.low, found.high, found.count, found.least, found.most)
            shown = " ".join(mark.name for mark in value.marks)
            yield (name, column, *numbers, value.text, value.published, shown)


def _name(value: Value) -> str:
    return f"{value.text} ({value.note})" if value.note else value.text


def _written(lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for line in lines:
        writer.writerow(["" if value is None else _inert(value) for value in line])
    return text.getvalue()


def _inert(value: object) -> object:
    """Numbers as they are; text that a spreadsheet would take for a formula with an apostrophe before it."""
    if not isinstance(value, str):
        return repr(value) if isinstance(value, float) else value
    return f"'{value}" if value.startswith(_FORMULA) else value
