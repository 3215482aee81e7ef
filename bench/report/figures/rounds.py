"""Round by round: ACC and ASR of every record, and the ASR of each trigger of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.report import names, style
from bench.report.figures.series import Plot, Series, frame, metric_axis, name_axes, not_drawn
from bench.report.rows import Row
from bench.report.values import number

MOST_TRACES = 60


def traces(series: Series, study: str = "") -> list[Plot]:
    """ASR and ACC after each round, from the victim at round 0; a thin line a record. ``study``: whose records, if of
    one figure of the paper. Rounds of a helper, such as NAD's teacher, are left out: it is never what is returned."""
    with_rounds = {
        label: kept for label, rows in series.rows.items() if (kept := [row for row in rows if _trace(row, "asr")])
    }
    longest = max((len(row.rounds) for rows in with_rounds.values() for row in rows), default=0)
    if longest == 0:
        return []
    drawn = {label: rows[:: -(-len(rows) * len(with_rounds) // MOST_TRACES)] for label, rows in with_rounds.items()}
    note = series.note((_count(with_rounds) - _count(drawn), "record"))
    plots = []
    for metric in ("asr", "acc"):
        name = names.METRIC_NAMES[metric]
        axes = frame(", ".join(filter(None, [f"{name} round by round", study])), with_rounds)
        seen = [0.95]
        for label, rows in drawn.items():
            colour, marker, _ = series.looks[label]
            for index, row in enumerate(rows):
                trace = _trace(row, metric)
                seen += [value for _, value in trace]
                axes.plot(
                    *zip(*trace, strict=True), color=colour, marker=marker, ms=2.5, lw=1.0, alpha=0.5,
                    label=style.clean(label) if index == 0 else None,
                )  # fmt: skip
        step = max(1, -(-longest // 8))
        axes.set_xticks(range(0, longest + 1, step))
        axes.set_ylim(*metric_axis(axes.yaxis, metric, seen))
        name_axes(axes, "round (0: before the defense)", f"{name}, %")
        style.legend(axes, [style.clean(label) for label in with_rounds])
        stem = "-".join(filter(None, [f"{metric}-rounds", study.lower().replace(" ", "")]))
        told = ", ".join(filter(None, [f"{name} after each round", study, "a line for each record"]))
        plots.append(Plot(stem, "rounds", told, axes.figure, note))
    return plots


def _count(rows: Mapping[str, Sequence[Row]]) -> int:
    return sum(map(len, rows.values()))


def _own_rounds(row: Row) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rounds whose model the defense may return, each with its number."""
    return ((index, each) for index, each in enumerate(row.rounds, 1) if not each.get("helper"))


def _trace(row: Row, metric: str) -> list[tuple[int, float]]:
    found = [(index, number(each.get(metric))) for index, each in _own_rounds(row)]
    trace = [(index, value) for index, value in found if value is not None]
    start = row.before.get(metric)
    return [(0, start), *trace] if trace and start is not None else trace


def by_trigger(series: Series) -> list[Plot]:
    """The ASR of each trigger round by round, for variants run on several triggers: means over the records."""
    plots = []
    for place, (label, rows) in enumerate(series.rows.items(), 1):
        found = _trigger_curves(rows)
        if not found:
            continue
        looks = (*style.SERIES, *style.IBAU)
        curves = dict(list(found.items())[: len(looks)])
        axes = frame(f"ASR of each trigger, {style.clean(label, 30)}", map(names.attack_name, curves))
        for (trigger, points), (colour, marker, dashes) in zip(curves.items(), looks, strict=False):
            name = style.clean(names.attack_name(trigger))
            axes.plot(
                list(points), list(points.values()), color=colour, marker=marker, ms=3, ls=dashes, lw=1.3, label=name
            )
        longest = max(max(points) for points in curves.values())
        axes.set_xticks(range(0, longest + 1, max(1, -(-longest // 8))))
        axes.set_ylim(*metric_axis(axes.yaxis, "asr", []))
        name_axes(axes, "round (0: before the defense)", "ASR, %")
        style.legend(axes, [style.clean(names.attack_name(trigger)) for trigger in curves])
        told = f"ASR of each of {len(curves)} triggers after each round, {label}"
        note = not_drawn((len(found) - len(curves), "trigger"))
        plots.append(Plot(f"asr-by-trigger-{place}", "rounds", told, axes.figure, note))
    return plots


def _trigger_curves(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Trigger to round to mean ASR."""
    seen: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        before = {each.attack: each.asr for each in row.triggers_before}
        for index, told in [(0, before), *((index, each.get("asr_by_trigger")) for index, each in _own_rounds(row))]:
            if not isinstance(told, Mapping):
                continue
            # In the order of the cell's triggers; of images under other names than the report's.
            called = list(before) if len(before) == len(told) else list(map(str, told))
            for trigger, rate in zip(called, told.values(), strict=True):
                known = number(rate)
                if known is not None:
                    seen.setdefault(trigger, {}).setdefault(index, []).append(known)
    kept = [(trigger, points) for trigger, points in seen.items() if max(points) > 0]
    return {
        trigger: {index: sum(each) / len(each) for index, each in sorted(points.items())} for trigger, points in kept
    }
