"""ACC against ASR against seconds: a point a record, and the means of every defense in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bench.report import names, style
from bench.report.figures.series import Plot, Series, frame, metric_axis, name_axes
from bench.report.groups import estimate


def trade_off(series: Series) -> list[Plot]:
    """ACC against ASR, and seconds against ASR, one point a record."""
    plots = []
    points = [row for rows in series.rows.values() for row in rows]
    if points:
        accuracies = [row.figures["acc"] for row in points]
        axes = frame("Accuracy against attack success", series.rows)
        axes.axvspan(-0.03, 0.2, color=style.GOOD, alpha=0.09, lw=0)
        _scatter(axes, series, "asr", "acc")
        axes.set_xlim(*metric_axis(axes.xaxis, "asr", []))
        axes.set_ylim(*metric_axis(axes.yaxis, "acc", accuracies))
        name_axes(axes, "ASR, %", "ACC, %")
        style.legend(axes, [style.clean(label) for label in series.rows])
        told = f"Scatter of ACC against ASR after each defense, {len(points)} records"
        plots.append(Plot("acc-asr", "trade-off", told, axes.figure, series.note()))
    timed = {
        label: kept
        for label, rows in series.rows.items()
        if rows[0].defense != "none" and (kept := [row for row in rows if row.figures.get("seconds", 0.0) > 0])
    }
    if timed:
        axes = frame("Seconds against attack success", timed)
        axes.axvspan(-0.03, 0.2, color=style.GOOD, alpha=0.09, lw=0)
        _scatter(axes, series.of(timed), "asr", "seconds")
        axes.set_xlim(*metric_axis(axes.xaxis, "asr", []))
        seconds = [row.figures["seconds"] for rows in timed.values() for row in rows]
        _log_seconds(axes, seconds)
        name_axes(axes, "ASR, %", "seconds")
        style.legend(axes, [style.clean(label) for label in timed])
        told = "Scatter of seconds against ASR after each defense"
        plots.append(Plot("seconds-asr", "trade-off", told, axes.figure, series.note()))
        plots.append(_bubbles(series))
    return plots


def _bubbles(series: Series) -> Plot:
    """Means of every defense: ACC up, ASR across, the larger the longer it took; the seconds stand in the legend."""
    means = {}
    for label, rows in series.rows.items():
        found = [estimate(rows, metric) for metric in ("asr", "acc", "seconds")]
        means[label] = [None if each is None else each.mean for each in found]
    told = {
        label: f"{style.clean(label, 30)}, {names.seconds_name(seconds)} s"
        if seconds and seconds > 0.05
        else style.clean(label)
        for label, (_, _, seconds) in means.items()
    }
    axes = frame("Accuracy, attack success and time: means", told.values())
    axes.axvspan(-0.03, 0.2, color=style.GOOD, alpha=0.09, lw=0)
    for label, (asr, acc, seconds) in means.items():
        colour, marker, _ = series.looks[label]
        size = 5.0 + 5.0 * max(0.0, math.log10(max(seconds or 0.0, 0.1)) + 1) ** 0.8
        axes.plot(
            [asr], [acc], ls="none", marker=marker, ms=size, color=colour, alpha=0.6, mec=colour, label=told[label]
        )
    axes.set_xlim(*metric_axis(axes.xaxis, "asr", []))
    axes.set_ylim(*metric_axis(axes.yaxis, "acc", [acc for _, acc, _ in means.values() if acc is not None]))
    name_axes(axes, "ASR, %", "ACC, %")
    style.legend(axes, list(told.values()), marker_size=6)
    shown = "Mean ACC, ASR and seconds of every defense"
    return Plot("acc-asr-seconds", "trade-off", shown, axes.figure, series.note())


def _scatter(axes: Any, series: Series, across: str, up: str) -> None:
    for label, rows in series.rows.items():
        colour, marker, _ = series.looks[label]
        xs = [row.figures[across] for row in rows if up in row.figures]
        ys = [row.figures[up] for row in rows if up in row.figures]
        axes.plot(
            xs, ys, ls="none", marker=marker, ms=6, color=colour, alpha=0.75, mec="white", mew=0.5,
            label=style.clean(label),
        )  # fmt: skip


def _log_seconds(axes: Any, values: Sequence[float]) -> None:
    low, high = min(values) / 1.5, max(values) * 1.5
    axes.set_yscale("log")
    steps = [base * 10.0**power for power in range(-6, 9) for base in (1, 2, 5)]
    ticks = [tick for tick in steps if low <= tick <= high]
    if len(ticks) > 7:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(low, high)
