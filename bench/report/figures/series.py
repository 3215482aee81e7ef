"""What every figure shares: the variants that are drawn, how they look, and axes in percent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report import style
from bench.report.groups import by, ordered
from bench.report.names import COLUMN_ORDER
from bench.report.rows import Row

MOST_VARIANTS = 12


@dataclass(frozen=True)
class Plot:
    """A drawn figure: its file's stem, the section it stands in, what it shows, and in ``note`` what it leaves out."""

    stem: str
    section: str
    label: str
    figure: Any
    note: str = ""


@dataclass(frozen=True)
class Series:
    """The variants that are drawn, each with colour, marker and dashes; ``left_out`` counts those that are not."""

    rows: dict[str, list[Row]]
    looks: dict[str, style.Look]
    left_out: int = 0

    def of(self, rows: dict[str, list[Row]]) -> Series:
        """The same looks for some of the rows."""
        return Series(rows, self.looks, self.left_out)

    def note(self, *more: tuple[int, str]) -> str:
        """What a figure of these does not draw: variants, and ``more``."""
        return not_drawn((self.left_out, "variant"), *more)


def not_drawn(*counts: tuple[int, str]) -> str:
    """``Not drawn: 3 more variants, 1 more map.`` of counts and what they are of; empty where nothing is left out."""
    told = [f"{count:,} more {name}{'s' * (count > 1)}" for count, name in counts if count > 0]
    return f"Not drawn: {', '.join(told)}." if told else ""


def series(rows: Sequence[Row], labels: Mapping[str, str]) -> Series:
    """At most ``MOST_VARIANTS`` variants, I-BAU's before others: a figure of more tells nothing."""
    found = by(rows, lambda row: labels[row.id])
    names = ordered(rows, labels)
    wanted = sorted(names, key=lambda label: found[label][0].defense not in ("none", "ibau"))[:MOST_VARIANTS]
    looks: dict[str, style.Look] = {}
    for label in (label for label in names if label in wanted):
        looks[label] = _look(found[label][0].defense, looks.values())
    return Series({label: found[label] for label in looks}, looks, len(names) - len(looks))


def _look(defense: str, taken: Iterable[style.Look]) -> style.Look:
    """A defense looks alike in all figures, its further variants like nothing else if there is a look left."""
    if defense == "none":
        return style.CONTROL
    palette = style.IBAU if defense == "ibau" else style.SERIES
    own = COLUMN_ORDER.index(defense) - 1 if defense in COLUMN_ORDER else 0
    choices = [*palette[own:], *palette[:own]]
    used = set(taken)
    return next((look for look in choices if look not in used), choices[0])


def frame(title: str, shown: Iterable[str]) -> Any:
    """Axes with room for a legend of ``shown``."""
    room = style.legend_room([style.clean(label) for label in shown])
    return style.axes(title, height=2.75 + room, bottom=0.5 + room)


def metric_axis(axis: Any, metric: str, values: Sequence[float]) -> tuple[float, float]:
    """ASR from 0 to 100; gaps from 0 up to a round figure; ACC from one below what was seen. Returns the limits."""
    if metric == "error_gap":
        high = math.ceil(max(0.01, *values) * 100) / 100
        style.percent_axis(axis, 0.0, high)
        return -0.03 * high, 1.03 * high
    if metric == "asr":
        style.percent_axis(axis)
        return -0.03, 1.03
    low = floor(values)
    style.percent_axis(axis, low, 1.0)
    return low - 0.03 * (1 - low), 1 + 0.03 * (1 - low)


def floor(values: Sequence[float]) -> float:
    """A round figure somewhat below the least of ``values``."""
    least = max(0.0, min(values) - 0.005)
    step = 0.02 if least > 0.9 else 0.05 if least > 0.7 else 0.1
    return round(math.floor(least / step) * step, 4)


def name_axes(axes: Any, across: str, up: str) -> None:
    axes.set_xlabel(across, labelpad=3)
    axes.set_ylabel(up, labelpad=4)
