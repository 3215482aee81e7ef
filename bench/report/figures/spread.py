"""Run-to-run spread: every run of an attack case as a point, with the median and the range (the paper's Figure 1)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import names, style
from bench.report.cases import attack_text, place_of
from bench.report.figures.series import Plot, Series, metric_axis
from bench.report.groups import by
from bench.report.rows import Row

FEWEST_RUNS = 3
MOST_CASES = 12
ROW_INCHES = 0.2

_Lane = tuple[str, list[Row]]
"""One variant's runs of one case."""


def spread(series: Series) -> list[Plot]:
    """A figure each of ASR and ACC, a lane for each case and variant with at least ``FEWEST_RUNS`` runs.

    ``MOST_CASES`` cases are drawn.
    """
    found = _cases(series)
    cases = dict(list(found.items())[:MOST_CASES])
    note = series.note((len(found) - len(cases), "case"))
    plots = []
    for metric in ("asr", "acc") if cases else ():
        name = names.METRIC_NAMES[metric]
        figure = _draw(f"{name}, run by run", cases, series, metric)
        runs = sum(len(rows) for lanes in cases.values() for _, rows in lanes)
        told = f"{name} of {runs} runs, by attack case and defense"
        plots.append(Plot(f"{metric}-spread", "spread", told, figure, note))
    return plots


def _cases(series: Series) -> dict[str, list[_Lane]]:
    """Case to its lanes: runs that differ in seed or run alone."""
    found: dict[tuple[str, str], list[_Lane]] = {}
    for label, rows in series.rows.items():
        if rows[0].defense == "none":
            continue
        alike = by(rows, lambda row: (row.victim_key, row.clean_size, row.radius))
        for members in alike.values():
            if len(members) >= FEWEST_RUNS:
                found.setdefault((_name(members[0]), members[0].victim_key), []).append((label, members))
    several = by(found, lambda key: key[0])
    told: dict[str, list[_Lane]] = {}
    for name, keys in sorted(several.items(), key=lambda item: (_place(found[item[1][0]]), item[0])):
        for number, key in enumerate(keys, 1):
            told[f"{name} ({number})" if len(keys) > 1 else name] = found[key]
    return told


def _place(lanes: Sequence[_Lane]) -> int:
    return place_of(lanes[0][1][0])


def _name(row: Row) -> str:
    case = attack_text(row) if row.one_trigger else f"{len(row.triggers)} triggers"
    return style.clean(f"{case} → {names.target_name(row.target)}" if row.one_trigger else case, 26)


def _draw(title: str, cases: Mapping[str, Sequence[_Lane]], series: Series, metric: str) -> Any:
    labels = list(dict.fromkeys(label for lanes in cases.values() for label, _ in lanes))
    lanes = sum(len(each) for each in cases.values())
    room = style.legend_room([style.clean(label) for label in labels])
    height = 0.9 + room + ROW_INCHES * (lanes + len(cases))
    axes = style.axes(title, height=max(2.0, height), bottom=0.5 + room, left=0.2 + 0.068 * max(map(len, cases)))
    seen: list[float] = []
    ticks, place = [], 0.0
    for case_lanes in cases.values():
        ticks.append(place + (len(case_lanes) - 1) / 2)
        for label, rows in case_lanes:
            values = [row.figures[metric] for row in rows]
            seen += values
            _lane(axes, values, place, series.looks[label], style.clean(label))
            place += 1
        place += 1
    axes.set_yticks(ticks, list(cases))
    axes.set_ylim(place - 1, -1)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(*metric_axis(axes.xaxis, metric, seen))
    axes.set_xlabel(f"{names.METRIC_NAMES[metric]}, %", labelpad=3)
    if metric == "asr":
        axes.axvspan(-0.03, 0.2, color=style.GOOD, alpha=0.09, lw=0)
    style.legend(axes, [style.clean(label) for label in labels])
    return axes.figure


def _lane(axes: Any, values: Sequence[float], place: float, look: style.Look, label: str) -> None:
    colour, marker, _ = look
    known = {text.get_label() for text in axes.get_lines()}
    axes.plot([min(values), max(values)], [place, place], color=colour, lw=1.2, alpha=0.45, label="_range")
    name = label if label not in known else "_again"
    axes.plot(
        values,
        [place] * len(values),
        ls="none",
        marker=marker,
        ms=5,
        color=colour,
        alpha=0.6,
        mec="white",
        mew=0.4,
        label=name,
    )
    middle = statistics.median(values)
    axes.plot([middle, middle], [place - 0.36, place + 0.36], color=colour, lw=2.2, label="_median")
