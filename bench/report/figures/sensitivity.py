"""ASR and ACC along poison ratio, n and C_delta, a line each defense."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from bench.report import names, settings, style, sweep_files
from bench.report.figures.series import Plot, Series, frame, metric_axis, name_axes, series
from bench.report.groups import by, estimate, variants
from bench.report.rows import Row

_AXES: tuple[tuple[str, str, Callable[[float | None], str], tuple[str, ...]], ...] = (
    ("poison_ratio", "poison ratio", names.ratio_name, ("table4", "table1")),
    ("clean_size", "clean images n", names.plain, ("table5", "table1")),
    ("radius", "radius Cδ", names.plain, ("c_delta",)),
)
"""Axis, its name, how a value is written, and the sweep files of the paper that run along it."""

Axis = tuple[str, str, Callable[[float | None], str]]
"""Name, title, and how a value is written."""
Along = dict[str, dict[float, list[Row]]]
"""Label to value of the axis to records."""


def curves(scored: Sequence[Row]) -> list[Plot]:
    """ASR and ACC along every axis that takes several values, the other axes held fixed."""
    plots: dict[str, list[Plot]] = {"asr": [], "acc": []}
    for axis, title, write, parts in _AXES:
        rows, _ = settings.along(sweep_files.of(scored, *parts), axis)
        shown = series(rows, variants(rows))
        found = lines(shown, operator.attrgetter(axis), _case)
        for metric in plots if found else ():
            plots[metric].append(curve(shown, found, metric, (axis, title, write)))
    return [*plots["asr"], *plots["acc"]]


def lines(
    shown: Series, place: Callable[[Row], float | None], case: Callable[[Row], Hashable] = lambda row: None
) -> Along:
    """Each label's records by their place on the axis, in ascending order; labels with one place have no line.

    Of several cases under one label those are in the line that are at the most places, and the line is of the places
    where all of these are: means over other cases at each place would make a slope of their own.
    """
    found = {}
    for label, rows in shown.rows.items():
        known = _of_the_same_cases([row for row in rows if place(row) is not None], place, case)
        if len(known) > 1:
            found[label] = {x: known[x] for x in sorted(x for x in known if x is not None)}
    return found


def _case(row: Row) -> Hashable:
    return row.dataset, row.model, row.attack, row.target, row.checkpoint


def _of_the_same_cases(
    rows: Sequence[Row], place: Callable[[Row], float | None], case: Callable[[Row], Hashable]
) -> dict[float | None, list[Row]]:
    cases = by(rows, case)
    places = [{place(row) for row in each} for each in cases.values()]
    most = max(map(len, places), default=0)
    kept = [(each, own) for each, own in zip(cases.values(), places, strict=True) if len(own) == most]
    shared = set.intersection(*(own for _, own in kept)) if kept else set()
    return by([row for each, _ in kept for row in each if place(row) in shared], place)


def curve(shown: Series, along: Along, metric: str, axis: Axis, section: str = "sensitivity") -> Plot:
    """A line with its band for each label of ``along``."""
    name, title, write = axis
    metric_name = names.METRIC_NAMES[metric]
    axes = frame(f"{metric_name} by {title}", along)
    seen: list[float] = []
    for label, points in along.items():
        colour, marker, dashes = shown.looks[label]
        found = {x: figure for x, rows in points.items() if (figure := estimate(rows, metric)) is not None}
        ends = [(f.mean if f.low is None else f.low, f.mean if f.high is None else f.high) for f in found.values()]
        axes.fill_between(list(found), *zip(*ends, strict=True), color=colour, alpha=0.14, lw=0)
        means = [figure.mean for figure in found.values()]
        axes.plot(list(found), means, color=colour, marker=marker, ms=5, ls=dashes, lw=1.8, label=style.clean(label))
        seen += [*means, *(end for both in ends for end in both)]
    _ticks_at(axes, sorted({x for points in along.values() for x in points}), write)
    axes.set_ylim(*metric_axis(axes.yaxis, metric, seen))
    name_axes(axes, title, f"{metric_name}, %")
    style.legend(axes, [style.clean(label) for label in along])
    stem = f"{metric}-by-{name}".replace("_", "-")
    told = f"{metric_name} against {title}, a line for each defense"
    return Plot(stem, section, told, axes.figure, shown.note())


def _ticks_at(axes: Any, values: Sequence[float], write: Callable[[float | None], str]) -> None:
    """Ticks at the values themselves, on a logarithmic scale where they span more than a factor of four."""
    if values[0] > 0 and values[-1] / values[0] > 4:
        axes.set_xscale("log")
        places = [math.log(value) for value in values]
    else:
        places = list(values)
    room = (places[-1] - places[0]) / 9  # closer than a ninth of the width, labels would touch
    kept: list[int] = []
    for index, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= room:
            kept.append(index)
    axes.set_xticks([values[index] for index in kept], [write(values[index]) for index in kept])
    axes.set_xticks([], minor=True)
