"""Figure 5: the t-SNE layouts that records carry, before and after the defense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.report import names, style
from bench.report.cases import attack_text
from bench.report.figures.series import Plot, not_drawn
from bench.report.groups import variants
from bench.report.rows import Row
from bench.report.values import number

MOST = 6
MOST_POINTS = 5000
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#aa4499", "#b58900", "#56b4e9", "#882255", "#6a8f2f", "#8c6d46", "#3d5afe",
)  # fmt: skip


class Layout(NamedTuple):
    """N images: true labels, 0 or the trigger's number, and a point each before and after."""

    labels: list[int]
    triggered: list[int]
    before: list[tuple[float, float]]
    after: list[tuple[float, float]]


def layout(tree: Mapping[str, Any]) -> Layout | None:
    """What a record's ``tsne`` holds, or None if it is not four lists of one length and of numbers."""
    points: dict[str, list[tuple[float, float]]] = {}
    for key in ("before", "after"):
        pairs = tree.get(key)
        if not isinstance(pairs, list) or not 0 < len(pairs) <= MOST_POINTS:
            return None
        found = [_point(pair) for pair in pairs]
        points[key] = [point for point in found if point is not None]
        if len(points[key]) != len(pairs):
            return None
    counts: dict[str, list[int]] = {}
    for key in ("labels", "triggered"):
        values = tree.get(key)
        known = [number(value) for value in values] if isinstance(values, list) else []
        counts[key] = [int(value) for value in known if value is not None]
    lengths = {*map(len, points.values()), *map(len, counts.values())}
    if len(lengths) > 1:
        return None
    return Layout(counts["labels"], counts["triggered"], points["before"], points["after"])


def _point(pair: object) -> tuple[float, float] | None:
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    across, up = number(pair[0]), number(pair[1])
    return None if across is None or up is None else (across, up)


def planes(rows: Sequence[Row]) -> list[Plot]:
    """A pair of scatter plots for each record that has layouts, ``MOST`` of them at most."""
    found = [(row, made) for row in rows if (made := layout(row.tsne)) is not None]
    labels = variants([row for row, _ in found])
    plots = []
    for place, (row, points) in enumerate(found[:MOST], 1):
        told = f"{attack_text(row) if row.one_trigger else 'several triggers'}, {labels[row.id]}, seed {row.seed}"
        figure = _draw(points, style.clean(told, 70), row.tsne)
        label = f"t-SNE of the features of clean and triggered images before and after the defense, {told}"
        note = not_drawn((len(found) - MOST, "record")) if place == MOST else ""
        plots.append(Plot(f"tsne-{place}", "tsne", label, figure, note))
    return plots


def _draw(points: Layout, told: str, tree: Mapping[str, Any]) -> Any:
    panes = style.pair("before the defense", "after it", told)
    for axes, place, key in zip(panes, (points.before, points.after), ("before", "after"), strict=True):
        for label in sorted(set(points.labels)):
            clean = [
                p
                for p, own, trigger in zip(place, points.labels, points.triggered, strict=True)
                if own == label and not trigger
            ]
            _dots(axes, clean, COLOURS[label % len(COLOURS)], 2.4, 0.55)
        stamped = [p for p, trigger in zip(place, points.triggered, strict=True) if trigger]
        _dots(axes, stamped, style.INK, 2.4, 0.8)
        share = number(tree.get(f"restored_{key}"))
        axes.set_xlabel(
            "" if share is None else f"{names.percent(share)} % of triggered images lie with their own class"
        )
        axes.set_xticks([])
        axes.set_yticks([])
    return panes[0].figure


def _dots(axes: Any, points: Sequence[tuple[float, float]], colour: str, size: float, alpha: float) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), ls="none", marker="o", ms=size, color=colour, alpha=alpha, mew=0)
