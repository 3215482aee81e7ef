"""Table 3: several triggers in one model, ACC, average ASR and the ASR of each trigger under every defense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.report import beside, cases, marks, names
from bench.report.cases import Line
from bench.report.groups import estimate
from bench.report.rows import Row
from bench.report.tables import Head, Table, Value


def triggers(found: Sequence[Line], labels: Mapping[str, str]) -> Table:
    """A row for ACC, one for the average ASR and one for each trigger; several victims one beneath the other."""
    shown = cases.columns(found, labels)
    apart, notes = cases.told_apart(found)
    body: list[tuple[Value, ...]] = []
    for line, told in zip(found, apart, strict=True):
        cells = cases.pairs(line)
        for place, metric in enumerate(("ACC", "avg. ASR")):
            values = (cells[name][place] if name in cells else Value("–") for name in shown)
            body.append((Value(metric, told), *values))
        for place, (attack, target) in enumerate(_pairs(line)):
            name = Value(f"{names.attack_name(attack)} ⇒ {names.target_name(target)}")
            body.append((name, *(_one(line.cells.get(column, ()), place, attack) for column in shown)))
    heads = (Head("Result", numeric=False), *map(Head, shown))
    return cases.finished(heads, body, notes)


def _pairs(line: Line) -> list[tuple[str, str]]:
    """The line's triggers with their targets; none if no record tells them apart."""
    known = (row.triggers for rows in line.cells.values() for row in rows if row.triggers)
    return [(each.attack, each.target) for each in next(known, ())]


def _one(rows: Sequence[Row], place: int, attack: str) -> Value:
    """The ASR of the trigger at ``place``, with its interval over repetitions."""
    of_it = [
        replace(row, figures={"asr": rate}, intervals={})
        for row in rows
        if place < len(row.triggers) and (rate := row.triggers[place].asr) is not None
    ]
    found = estimate(of_it, "asr")
    if found is None:
        return Value("–")
    high = found.mean >= marks.MAX_ASR and rows[0].defense != "none"
    theirs = beside.multi_trigger(rows[0], attack)[1]
    return cases.value(found, "asr", theirs, [marks.ASR_HIGH] if high else [])
