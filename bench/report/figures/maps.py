"""Heat maps of I-BAU over C_delta x n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bench.report import names, style
from bench.report.figures.series import Plot, floor, name_axes, not_drawn
from bench.report.groups import by, variants
from bench.report.rows import Row

MOST_MAPS = 8


def maps(scored: Sequence[Row]) -> list[Plot]:
    """For each I-BAU variant and poison ratio, ASR and ACC over C_delta x n (means over what else varies)."""
    rows = [row for row in scored if row.defense == "ibau" and None not in (row.radius, row.clean_size)]
    labels = variants(rows)
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
        lowest = 0.0 if metric == "asr" else floor([row.figures["acc"] for row in rows] or [0.0])
        for place, (told, members) in enumerate(shown[:MOST_MAPS], 1):
            figure = _map(f"{name}, % · {style.clean(told, 44)}", members, metric, lowest)
            label = f"Heat map of {name} over radius and clean size, {told}"
            note = not_drawn((len(shown) - MOST_MAPS, "map")) if place == MOST_MAPS else ""
            plots.append(Plot(f"{metric}-map-{place}", "maps", label, figure, note))
    return plots


def _map(title: str, rows: Sequence[Row], metric: str, lowest: float) -> Any:
    radii = sorted({row.radius for row in rows if row.radius is not None})
    sizes = sorted({row.clean_size for row in rows if row.clean_size is not None})
    cells = by(rows, lambda row: (row.radius, row.clean_size))
    means = [[_mean(cells.get((radius, size), []), metric) for size in sizes] for radius in radii]
    axes = style.axes(title, width=4.2, height=max(2.3, 1.1 + 0.42 * len(radii)), bottom=0.55)
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
    name_axes(axes, "clean images n", "radius Cδ")
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
