"""The plots of ``docs/engine.md`` and ``docs/theory.md``, drawn from records."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench.report import style
from bench.theory import gap_figures

Row = dict[str, Any]
_LOOKS = {
    "implicit": style.IBAU[0],
    "unrolled": style.SERIES[0],
    "bound": style.CONTROL,
    "solver": style.SERIES[1],
    "solved": style.SERIES[2],
}


def draw(study: str, rows: Sequence[Row]) -> tuple[bytes, bytes]:
    """(SVG, PNG) of one study; the same rows, the same bytes."""
    with style.drawing():
        return style.save(FIGURES[study](rows))


def _hypergradient_error(rows: Sequence[Row]) -> Any:
    """Medians over the problems, and the range between the least and the largest."""
    labels = {
        "bound": "bound of Theorem 1",
        "implicit": "implicit, K = T fixed-point steps",
        "unrolled": "unrolled through T steps",
        "solved": "implicit, system solved exactly",
    }
    room = style.legend_room(list(labels.values()))
    axes = style.axes("Error of the hypergradient, strongly concave", height=2.9 + room, bottom=0.5 + room)
    steps = sorted({row["steps"] for row in rows})
    for key, label in labels.items():
        colour, marker, dashes = _LOOKS[key]
        values = [sorted(row[key] for row in rows if row["steps"] == step) for step in steps]
        low, high = [one[0] for one in values], [one[-1] for one in values]
        axes.fill_between(steps, low, high, color=colour, alpha=0.1, lw=0)
        middle = [statistics.median(one) for one in values]
        width = 3.5 if key == "implicit" else 1.4  # it lies under the unrolled one
        axes.plot(steps, middle, color=colour, marker=marker, ms=4, ls=dashes, lw=width, label=label)
    axes.set_yscale("log")
    powers = range(-10, 3, 2)
    axes.set_yticks([10.0**power for power in powers], [f"1e{power}" for power in powers])
    axes.set_yticks([], minor=True)
    axes.set_ylim(1e-9, 1e2)
    axes.set_xlabel("inner steps T")
    axes.set_ylabel("‖error‖ / ‖∇ψ‖")
    style.legend(axes, list(labels.values()))
    return axes.figure


def _saved_bytes(rows: Sequence[Row]) -> Any:
    """In units of one ∇H: implicit against T and against K, unrolled against T; both axes logarithmic."""
    unit = next(row["bytes"] for row in rows if row["what"] == "one_gradient")
    few = min(row["solver_steps"] for row in rows if row["what"] == "implicit" and row["inner_steps"] == 2)
    curves = {
        "unrolled": ("unrolled, T steps", "inner_steps", lambda row: row["what"] == "unrolled"),
        "implicit": (
            f"implicit, T steps, K = {few}",
            "inner_steps",
            lambda row: row["what"] == "implicit" and row["solver_steps"] == few,
        ),
        "solver": (
            f"implicit, K steps, T = {few}",
            "solver_steps",
            lambda row: row["what"] == "implicit" and row["inner_steps"] == few,
        ),
    }
    labels = [label for label, _, _ in curves.values()]
    room = style.legend_room(labels)
    axes = style.axes("Bytes saved for backward", height=2.75 + room, bottom=0.5 + room)
    for key, (label, across, chosen) in curves.items():
        colour, marker, dashes = _LOOKS[key]
        points = sorted((row[across], row["bytes"] / unit) for row in rows if chosen(row))
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=4, ls=dashes, lw=1.4, label=label)
    ticks = sorted({row["inner_steps"] for row in rows if row["what"] == "unrolled"})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    heights = [2**power for power in range(0, 8) if 2**power <= 2 * max(row["bytes"] for row in rows) / unit]
    axes.set_yticks(heights, [str(height) for height in heights])
    axes.set_xlabel("steps")
    axes.set_ylabel("in units of one ∇H")
    style.legend(axes, labels)
    return axes.figure


FIGURES: dict[str, Callable[[Sequence[Row]], Any]] = {
    "hypergradient_error": _hypergradient_error,
    "saved_bytes": _saved_bytes,
    "linear_gap": gap_figures.linear_gap,
    "network_gap_clean": gap_figures.network_gap_clean,
    "network_gap_width": gap_figures.network_gap_width,
}
