"""The figures: sensitivity curves, C_delta x n heat maps, round traces, the ACC-ASR trade-off. One axes each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report import names, style
from bench.report.groups import Group, by, ordered
from bench.report.rows import Row, number

MOST_VARIANTS = 8
MOST_TRACES = 60
MOST_MAPS = 8

_AXES: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("poison_ratio", "poison ratio", names.ratio_name),
    ("clean_size", "clean images n", names.plain),
    ("radius", "radius Cδ", names.plain),
)


@dataclass(frozen=True)
class Plot:
    """A drawn figure: its file's stem, the section it stands in, what it shows."""

    stem: str
    section: str
    label: str
    figure: Any


@dataclass(frozen=True)
class _Series:
    """The variants that are drawn, each with colour, marker and dashes."""

    rows: dict[str, list[Row]]
    looks: dict[str, tuple[str, str, Any]]


def draw(group: Group, labels: dict[str, str]) -> list[Plot]:
    """Every figure the group's scored records give something to show for."""
    series = _series(group.scored, labels)
    return [*_trade_off(series), *_curves(series), *_maps(group, labels), *_traces(series)]


def _series(rows: Sequence[Row], labels: dict[str, str]) -> _Series:
    found = by(rows, lambda row: labels[row.id])
    looks: dict[str, tuple[str, str, Any]] = {}
    used = {"ibau": 0, "other": 0}
    for label in ordered(rows, labels)[:MOST_VARIANTS]:
        defense = found[label][0].defense
        if defense == "none":
            looks[label] = style.CONTROL
            continue
        kind, palette = ("ibau", style.IBAU) if defense == "ibau" else ("other", style.SERIES)
        looks[label] = palette[used[kind] % len(palette)]
        used[kind] += 1
    return _Series({label: found[label] for label in looks}, looks)


def _frame(title: str, shown: Iterable[str]) -> Any:
    room = style.legend_room([style.clean(label) for label in shown])
    return style.axes(title, height=2.75 + room, bottom=0.5 + room)


def _metric_axis(axis: Any, metric: str, values: Sequence[float]) -> tuple[float, float]:
    """ASR from 0 to 100; ACC from a round figure below what was seen. Returns the limits."""
    if metric == "asr":
        style.percent_axis(axis)
        return -0.03, 1.03
    low = _floor(values)
    style.percent_axis(axis, low, 1.0)
    return low - 0.03 * (1 - low), 1 + 0.03 * (1 - low)


def _floor(values: Sequence[float]) -> float:
    """A round figure somewhat below the least of ``values``."""
    least = max(0.0, min(values) - 0.005)
    step = 0.02 if least > 0.9 else 0.05 if least > 0.7 else 0.1
    return round(math.floor(least / step) * step, 4)


def _trade_off(series: _Series) -> list[Plot]:
    """ACC against ASR, and seconds against ASR, one point a record."""
    plots = []
    points = [row for rows in series.rows.values() for row in rows]
    if points:
        accuracies = [row.figures["acc"] for row in points]
        axes = _frame("Accuracy against attack success", series.rows)
        axes.axvspan(-0.03, 0.2, color="#009e73", alpha=0.09, lw=0)
        _scatter(axes, series, "asr", "acc")
        axes.set_xlim(*_metric_axis(axes.xaxis, "asr", []))
        axes.set_ylim(*_metric_axis(axes.yaxis, "acc", accuracies))
        _name_axes(axes, "ASR, %", "ACC, %")
        style.legend(axes, [style.clean(label) for label in series.rows])
        told = f"Scatter of ACC against ASR after each defense, {len(points)} records"
        plots.append(Plot("acc-asr", "trade-off", told, axes.figure))
    timed = {
        label: kept
        for label, rows in series.rows.items()
        if rows[0].defense != "none" and (kept := [row for row in rows if row.figures.get("seconds", 0.0) > 0])
    }
    if timed:
        axes = _frame("Seconds against attack success", timed)
        axes.axvspan(-0.03, 0.2, color="#009e73", alpha=0.09, lw=0)
        _scatter(axes, _Series(timed, series.looks), "asr", "seconds")
        axes.set_xlim(*_metric_axis(axes.xaxis, "asr", []))
        seconds = [row.figures["seconds"] for rows in timed.values() for row in rows]
        _log_seconds(axes, seconds)
        _name_axes(axes, "ASR, %", "seconds")
        style.legend(axes, [style.clean(label) for label in timed])
        plots.append(Plot("seconds-asr", "trade-off", "Scatter of seconds against ASR after each defense", axes.figure))
    return plots


def _scatter(axes: Any, series: _Series, across: str, up: str) -> None:
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


def _name_axes(axes: Any, across: str, up: str) -> None:
    axes.set_xlabel(across, labelpad=3)
    axes.set_ylabel(up, labelpad=4)


def _curves(series: _Series) -> list[Plot]:
    """ASR and ACC along every axis that takes several values: mean over all else, band from smallest to largest."""
    plots: dict[str, list[Plot]] = {"asr": [], "acc": []}
    for axis, title, write in _AXES:
        along: dict[str, dict[float, list[Row]]] = {}
        for label, rows in series.rows.items():
            points = by((row for row in rows if getattr(row, axis) is not None), lambda row, a=axis: getattr(row, a))  # type: ignore[misc]
            if len(points) > 1:
                along[label] = dict(sorted(points.items()))
        for metric in plots if along else ():
            plots[metric].append(_curve(series, along, metric, (axis, title, write)))
    return [*plots["asr"], *plots["acc"]]


def _curve(
    series: _Series,
    along: dict[str, dict[float, list[Row]]],
    metric: str,
    axis: tuple[str, str, Callable[[float | None], str]],
) -> Plot:
    name, title, write = axis
    metric_name = names.METRIC_NAMES[metric]
    axes = _frame(f"{metric_name} by {title}", along)
    seen: list[float] = []
    for label, points in along.items():
        colour, marker, dashes = series.looks[label]
        values = [[row.figures[metric] for row in rows] for rows in points.values()]
        seen += [value for each in values for value in each]
        means = [sum(each) / len(each) for each in values]
        xs = list(points)
        axes.fill_between(xs, [min(each) for each in values], [max(each) for each in values], color=colour, alpha=0.14,
                          lw=0)  # fmt: skip
        axes.plot(xs, means, color=colour, marker=marker, ms=5, ls=dashes, lw=1.8, label=style.clean(label))
    _ticks_at(axes, sorted({x for points in along.values() for x in points}), write)
    axes.set_ylim(*_metric_axis(axes.yaxis, metric, seen))
    _name_axes(axes, title, f"{metric_name}, %")
    style.legend(axes, [style.clean(label) for label in along])
    stem = f"{metric}-by-{name.replace('_', '-')}"
    return Plot(stem, "sensitivity", f"{metric_name} against {title}, a line for each defense", axes.figure)


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


def _maps(group: Group, labels: dict[str, str]) -> list[Plot]:
    """For each I-BAU variant and poison ratio, ASR and ACC over C_delta x n (means over what else varies)."""
    rows = [row for row in group.scored if row.defense == "ibau" and None not in (row.radius, row.clean_size)]
    several = len({labels[row.id] for row in rows}) > 1
    shown: list[tuple[str, list[Row]]] = []
    for (label, ratio), members in by(rows, lambda row: (labels[row.id], row.poison_ratio)).items():
        if len({row.radius for row in members}) > 1 and len({row.clean_size for row in members}) > 1:
            told = "poison ratio " + names.ratio_name(ratio) if ratio else "model from a checkpoint"
            shown.append((f"{label}, {told}" if several else told, members))
    plots = []
    for metric in ("asr", "acc"):
        name = names.METRIC_NAMES[metric]
        # One scale for all maps of a metric, so that they can be compared; dark is good in both.
        lowest = 0.0 if metric == "asr" else _floor([row.figures["acc"] for row in rows] or [0.0])
        for place, (told, members) in enumerate(shown[:MOST_MAPS], 1):
            figure = _map(f"{name}, % · {style.clean(told, 44)}", members, metric, lowest)
            label = f"Heat map of {name} over radius and clean size, {told}"
            plots.append(Plot(f"{metric}-map-{place}", "maps", label, figure))
    return plots


def _map(title: str, rows: Sequence[Row], metric: str, lowest: float) -> Any:
    radii = sorted({row.radius for row in rows if row.radius is not None})
    sizes = sorted({row.clean_size for row in rows if row.clean_size is not None})
    cells = by(rows, lambda row: (row.radius, row.clean_size))
    means = [[_mean(cells.get((radius, size), []), metric) for size in sizes] for radius in radii]
    axes = style.axes(title, width=3.4, height=max(2.3, 1.1 + 0.42 * len(radii)), bottom=0.55)
    axes.grid(False)
    colours = "cividis" if metric == "asr" else "cividis_r"
    mesh = axes.pcolormesh(means, cmap=colours, vmin=lowest, vmax=1.0, edgecolors="none")
    for row, line in enumerate(means):
        for column, value in enumerate(line):
            _figure_in_map(axes, mesh, (column + 0.5, row + 0.5), value)
    axes.set_xticks([place + 0.5 for place in range(len(sizes))], [names.plain(size) for size in sizes])
    axes.set_yticks([place + 0.5 for place in range(len(radii))], [names.plain(radius) for radius in radii])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _name_axes(axes, "clean images n", "radius Cδ")
    return axes.figure


def _figure_in_map(axes: Any, mesh: Any, place: tuple[float, float], value: float) -> None:
    """The figure over its square, black or white by the square's brightness; a dash where no record was scored."""
    if math.isnan(value):
        axes.text(*place, "–", ha="center", va="center", color=style.MUTED)
        return
    red, green, blue, _ = mesh.cmap(mesh.norm(value))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    colour = "#ffffff" if dark else "#000000"
    axes.text(*place, f"{100 * value:.1f}", ha="center", va="center", color=colour)


def _mean(rows: Sequence[Row], metric: str) -> float:
    return sum(row.figures[metric] for row in rows) / len(rows) if rows else math.nan


def _traces(series: _Series) -> list[Plot]:
    """ASR and ACC after each round, from the victim at round 0; a thin line a record."""
    with_rounds = {
        label: kept for label, rows in series.rows.items() if (kept := [row for row in rows if _trace(row, "asr")])
    }
    longest = max((len(row.rounds) for rows in with_rounds.values() for row in rows), default=0)
    if longest == 0:
        return []
    plots = []
    for metric in ("asr", "acc"):
        name = names.METRIC_NAMES[metric]
        axes = _frame(f"{name} round by round", with_rounds)
        seen = [0.95]
        for label, rows in with_rounds.items():
            colour, marker, _ = series.looks[label]
            every = -(-len(rows) * len(with_rounds) // MOST_TRACES)
            for index, row in enumerate(rows[::every]):
                trace = _trace(row, metric)
                seen += [value for _, value in trace]
                axes.plot(
                    *zip(*trace, strict=True), color=colour, marker=marker, ms=2.5, lw=1.0, alpha=0.5,
                    label=style.clean(label) if index == 0 else None,
                )  # fmt: skip
        step = max(1, -(-longest // 8))
        axes.set_xticks(range(0, longest + 1, step))
        axes.set_ylim(*_metric_axis(axes.yaxis, metric, seen))
        _name_axes(axes, "round (0: before the defense)", f"{name}, %")
        style.legend(axes, [style.clean(label) for label in with_rounds])
        plots.append(
            Plot(f"{metric}-rounds", "rounds", f"{name} after each round, a line for each record", axes.figure)
        )
    return plots


def _trace(row: Row, metric: str) -> list[tuple[int, float]]:
    found = [(index, number(each.get(metric))) for index, each in enumerate(row.rounds, 1)]
    trace = [(index, value) for index, value in found if value is not None]
    start = row.before.get(metric)
    return [(0, start), *trace] if trace and start is not None else trace
