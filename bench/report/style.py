"""How a figure looks, and how it becomes bytes: the same figure, the same bytes. matplotlib is imported late."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Look = tuple[str, str, Any]
"""Colour, marker, dashes."""

INK, MUTED, GRID = "#1c2128", "#59636e", "#d8dee4"
# Okabe and Ito's palette, told apart by the common kinds of colour blindness; markers and dashes repeat the message.
CONTROL: Look = ("#6e7781", "D", (0, (4, 2)))
SERIES: tuple[Look, ...] = (
    ("#d55e00", "s", (0, (6, 2))),
    ("#009e73", "^", (0, (2, 1.5))),
    ("#aa4499", "v", (0, (6, 2, 1, 2))),
    ("#b58900", "P", (0, (1, 1))),
    ("#56b4e9", "X", (0, (8, 2, 1, 2, 1, 2))),
    ("#882255", "<", (0, (4, 1))),
    ("#6a8f2f", ">", (0, (3, 1, 1, 1))),
    ("#8c6d46", "d", (0, (5, 3))),
)
IBAU: tuple[Look, ...] = (
    ("#0072b2", "o", "solid"),
    ("#3d5afe", "h", "solid"),
    ("#00838f", "p", "solid"),
)
GOOD = "#009e73"
"""The band of ASR in which the paper counts a defense as effective."""
THEMED = (INK, MUTED, GRID, CONTROL[0], *(each[0] for each in SERIES), *(each[0] for each in IBAU))
"""The colours that the page may replace by its own (``--p-1c2128`` and so on), for dark mode."""

_SETTINGS = {
    "svg.hashsalt": "ibau-bench",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a stranger's name is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "path.simplify": True,
}


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's settings for drawing and saving, put back afterwards."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that the font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def axes(title: str, width: float = 4.2, height: float = 3.1, bottom: float = 0.62, left: float = 0.62) -> Any:
    """An empty pair of axes on its own figure; margins in inches, so that no layout engine need run."""
    figure = _figure(width, height)
    figure.subplots_adjust(left=left / width, right=1 - 0.18 / width, top=1 - 0.34 / height, bottom=bottom / height)
    found = figure.add_subplot()
    found.set_title(title, pad=8)
    return found


def pair(left: str, right: str, told: str, width: float = 6.6, height: float = 3.6) -> tuple[Any, Any]:
    """Two square panes side by side with a title each and one over both."""
    figure = _figure(width, height)
    figure.subplots_adjust(left=0.02, right=0.98, top=1 - 0.62 / height, bottom=0.3 / height, wspace=0.06)
    figure.suptitle(told, x=0.02, y=1 - 0.1 / height, ha="left", va="top", size=10.0, color=INK)
    panes = figure.subplots(1, 2)
    for pane, title in zip(panes, (left, right), strict=True):
        pane.set_title(title, size=9.0, color=MUTED, pad=4)
        pane.grid(False)
    return panes[0], panes[1]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def legend(drawn: Any, labels: Sequence[str], marker_size: float | None = None) -> None:
    """A legend under the axes, in as many columns as fit; its markers all of one size if one is given."""
    height = drawn.figure.get_size_inches()[1]
    made = drawn.figure.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / height),
        ncols=_legend_columns(labels),
        handlelength=2.4,
        columnspacing=1.2,
    )
    for handle in made.legend_handles if marker_size else ():
        handle.set_markersize(marker_size)


def legend_room(labels: Sequence[str]) -> float:
    """Inches that ``legend`` takes."""
    return 0.12 + 0.2 * -(-len(labels) // _legend_columns(labels))


def _legend_columns(labels: Sequence[str]) -> int:
    longest = max(map(len, labels), default=0)
    return 3 if longest <= 11 else 2 if longest <= 24 else 1


def percent_axis(axis: Any, low: float = 0.0, high: float = 1.0) -> None:
    """Ticks in percent over [low, high]."""
    span = high - low
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.25) if span / step <= 5.5), 0.25)
    ticks = [round(k * step, 4) for k in range(round(low / step), round(high / step) + 1)]
    axis.set_ticks(ticks, [f"{100 * tick:g}" for tick in ticks])


def clean(text: str, most: int = 40) -> str:
    """A name fit for a figure: printable, one line, not endless."""
    printable = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    return printable if len(printable) <= most else printable[: most - 1] + "…"


def save(figure: Any) -> tuple[bytes, bytes]:
    """(SVG, PNG) of a figure, without date or version."""
    vector, raster = io.BytesIO(), io.BytesIO()
    figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    figure.savefig(raster, format="png", dpi=144, metadata={"Software": None}, facecolor="white")
    return vector.getvalue(), raster.getvalue()


def inline(svg: bytes, prefix: str, label: str) -> str:
    """An SVG made part of a page: transparent, in the page's colours, its ids its own.

    ``label`` is what a screen reader says, already escaped for an attribute.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)  # it would rule the whole page
    text = re.sub(r'(<g id="patch_1">\s*<path d="[^"]*" style=")fill: #ffffff', r"\1fill: none", text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="f{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1f{prefix}-", text)
    for colour in THEMED:
        text = re.sub(rf"(?<=: ){colour}\b", f"var(--p-{colour[1:]},{colour})", text)
    opening = f'<svg role="img" aria-label="{label}" '
    return opening + re.sub(r'\b(?:width|height)="[\d.]+pt" ?', "", text.removeprefix("<svg "), count=2)
