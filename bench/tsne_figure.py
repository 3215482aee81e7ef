"""Figure 5: the t-SNE layouts of a record, before and after the defense, as SVG and PNG.

``python -m bench.tsne_figure RESULTS`` draws them for every record that has them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import UserError
from bench.records import Record, RecordStore, Tsne
from bench.report import style

WIDTH, HEIGHT = 8.4, 4.6
"""Inches."""
MARKS = ("o", "x", "+", "^", "v", "s", "D", "*")
"""Of clean images, and of those with the first trigger, the second, and so on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 and one line on standard error for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m bench.tsne_figure", description="Figure 5 of a folder's records.")
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder that holds records.jsonl")
    folder = parser.parse_args(arguments).results
    try:
        drawn = write(folder, RecordStore(folder).read())
        if not drawn:
            raise UserError(f"RESULTS: no record of {str(folder)!r} has t-SNE layouts; expected one with tsne_images")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in drawn:
        print(path)
    return 0


def write(folder: Path, records: Iterable[Record]) -> list[Path]:
    """``folder/plots/tsne_ID.svg`` and ``.png`` of each record that has layouts; returns the SVGs' paths."""
    written = []
    for record in records:
        if record.tsne is None:
            continue
        path = folder / "plots" / f"tsne_{record.id}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        vector, raster = draw(record.tsne, str(record.cell.defense["name"]))
        path.write_bytes(vector)
        path.with_suffix(".png").write_bytes(raster)
        written.append(path)
    return written


def draw(tsne: Tsne, defense: str) -> tuple[bytes, bytes]:
    """(SVG, PNG): one panel before and one after, a colour a class, a mark for clean and for each trigger."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.drawing():
        figure = Figure(figsize=(WIDTH, HEIGHT))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.02, right=0.98, top=0.9, bottom=0.2, wspace=0.05)
        told = (("before", tsne.before, tsne.restored_before), (f"after {defense}", tsne.after, tsne.restored_after))
        for panel, (title, points, share) in zip(panels, told, strict=True):
            _panel(panel, np.array(points), tsne)
            near = "" if share is None else f": {100 * share:.0f} % of triggered images lie among their own class"
            panel.set_title(style.clean(title, 20) + near, fontsize=9)
        _legend(figure, tsne)
        return style.save(figure)


def _panel(panel: Any, points: Any, tsne: Tsne) -> None:
    labels, triggered = np.array(tsne.labels), np.array(tsne.triggered)
    colours = _colours(len(set(tsne.labels)))
    for place, label in enumerate(sorted(set(tsne.labels))):
        for number in sorted(set(tsne.triggered)):
            chosen = (labels == label) & (triggered == number)
            mark = MARKS[number % len(MARKS)]
            size, width = (9, 0.0) if number == 0 else (16, 0.9)
            panel.scatter(*points[chosen].T, s=size, marker=mark, color=colours[place], linewidths=width or None)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.grid(False)
    for spine in panel.spines.values():
        spine.set_visible(True)


def _legend(figure: Any, tsne: Tsne) -> None:
    from matplotlib.lines import Line2D

    names = sorted(set(tsne.labels))
    shown = list(zip(names, _colours(len(names)), strict=True))
    if len(shown) <= 12:
        dots = [Line2D([], [], marker="o", linestyle="", color=colour, label=str(name)) for name, colour in shown]
    else:
        dots = [Line2D([], [], marker="o", linestyle="", color=style.MUTED, label=f"{len(names)} classes")]
    kinds = [
        Line2D([], [], marker=MARKS[number % len(MARKS)], linestyle="", color=style.INK,
               label="clean" if number == 0 else "triggered" if max(tsne.triggered) == 1 else f"trigger {number}")
        for number in sorted(set(tsne.triggered))
    ]  # fmt: skip
    figure.legend(handles=[*dots, *kinds], loc="lower center", ncols=6, handletextpad=0.2, columnspacing=1.2)


def _colours(count: int) -> list[Any]:
    """As many colours as classes: ten that are told apart well, or hues around the circle."""
    from matplotlib import colormaps

    wheel = colormaps["tab10"] if count <= 10 else colormaps["hsv"]
    return [wheel(place if count <= 10 else 0.95 * place / count) for place in range(count)]


if __name__ == "__main__":
    sys.exit(main())
