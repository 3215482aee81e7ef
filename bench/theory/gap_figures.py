"""The plots of ``docs/theory.md``: measured gaps beside their bounds, and how many times the one is the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.report import style

Row = dict[str, Any]
FLOOR = 1e-4
"""Where a gap of 0 is drawn."""
_GAP, _BOUND, _PRINTED = style.IBAU[0], style.CONTROL, style.SERIES[0]


def linear_gap(rows: Sequence[Row]) -> Any:
    """Two data sets, gap and derived bound over n."""
    curves: list[tuple[str, str, Sequence[Row], Any]] = []
    for source, gap, bound in (("two clouds", _GAP, _BOUND), ("digits", style.IBAU[2], style.SERIES[2])):
        chosen = [row for row in rows if row["source"] == source]
        curves.append((f"gap, {source}", "gap", chosen, gap))
        curves.append((f"Theorem 2, {source}", "bound", chosen, bound))
    return _drawn("Linear models over n", "clean images n", "count", curves)


def network_gap_clean(rows: Sequence[Row]) -> Any:
    """Gap and both bounds over n."""
    return _drawn("One hidden layer, over n", "clean images n", "count", _network_curves(rows))


def network_gap_width(rows: Sequence[Row]) -> Any:
    """Gap and both bounds over the hidden width."""
    return _drawn("One hidden layer, over its width", "hidden units", "width", _network_curves(rows))


def looseness(rows: Sequence[Row], key: str = "bound") -> float:
    """The median of bound / gap, gaps of 0 taken for ``FLOOR``."""
    return float(statistics.median(row[key] / max(row["gap"], FLOOR) for row in rows))


def times_name(factor: float) -> str:
    """Two digits: 94, or 1.8e9."""
    return f"{factor:.0f}" if factor < 100 else f"{factor:.1e}".replace("e+0", "e").replace("e+", "e")


def _network_curves(rows: Sequence[Row]) -> list[tuple[str, str, Sequence[Row], Any]]:
    return [
        ("measured gap", "gap", rows, _GAP),
        ("Theorem 3, derived", "bound", rows, _BOUND),
        ("Theorem 3, printed", "printed", rows, _PRINTED),
    ]


def _drawn(title: str, across: str, key: str, curves: Sequence[tuple[str, str, Sequence[Row], Any]]) -> Any:
    labels = [label for label, *_ in curves]
    room = style.legend_room(labels)
    axes = style.axes(title, height=3.3 + room, bottom=0.5 + room)
    axes.axhline(1, color=style.MUTED, lw=0.8)
    places = sorted({row[key] for *_, rows, _ in curves for row in rows})
    for label, column, rows, (colour, marker, dashes) in curves:
        here = sorted({row[key] for row in rows})
        values = [sorted(max(row[column], FLOOR) for row in rows if row[key] == place) for place in here]
        axes.fill_between(here, [one[0] for one in values], [one[-1] for one in values], color=colour, alpha=0.1, lw=0)
        middle = [statistics.median(one) for one in values]
        axes.plot(here, middle, color=colour, marker=marker, ms=4, ls=dashes, lw=1.4, label=label)
        if column != "gap":
            axes.annotate(
                f"× {times_name(looseness(rows, column))}", (here[0], middle[0]), xytext=(0, 9),
                textcoords="offset points", color=colour,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = places if len(places) < 8 else [10**power for power in range(2, 5)]
    axes.set_xticks(shown, [f"{place:g}" for place in shown])
    axes.set_xticks([], minor=True)
    top = max(row[column] for _, column, rows, _ in curves for row in rows)
    powers = [p for p in range(-4, 13, 2) if 10**p <= 10 * top]
    axes.set_yticks([10.0**p for p in powers], [f"{10.0 ** (p + 2):g} %" if p < 1 else f"1e{p + 2} %" for p in powers])
    axes.set_yticks([], minor=True)
    axes.set_ylim(FLOOR / 2, 12 * top)
    axes.annotate(
        "above this line a bound says nothing", (places[-1], 1), xytext=(0, 3), textcoords="offset points",
        ha="right", color=style.MUTED, fontsize=7.5,
    )  # fmt: skip
    axes.set_xlabel(across)
    style.legend(axes, labels)
    return axes.figure
