"""``build``: from ``records.jsonl`` to the report's files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from adapters.errors import UserError
from bench.report import html, latex, markdown, spreadsheet, timings
from bench.report.page import Page, compose
from bench.report.rows import read

FORMATS: Mapping[str, Mapping[str, Callable[[Page], str]]] = {
    "html": {"report.html": html.render},
    "md": {"report.md": markdown.render},
    "latex": {"report.tex": latex.render},
    "csv": {"tables.csv": spreadsheet.figures, "records.csv": spreadsheet.records},
}
"""Name of a format to its files and what writes them; the first file is the one to open."""
WITH_FIGURES = frozenset({"html", "md"})


def build(folder: Path, formats: Sequence[str] = tuple(FORMATS), figures: bool = True) -> Path:
    """Write the report of ``folder/records.jsonl`` beside it and return the path of ``report.html``.

    ``folder`` may also be a file of the timing suite's; its report lies in a folder of its name.

    The same records give the same bytes. ``formats`` picks among ``FORMATS``; with ``figures``, ``html`` and ``md``
    come with them, and they are written to ``plots/`` too. If ``html`` is not asked for, the first format's path is
    returned instead. Raises ``UserError`` for a folder without records, an unknown format, or one that cannot be
    written to.
    """
    wanted = list(dict.fromkeys(formats))
    for name in wanted or [""]:
        if name not in FORMATS:
            raise UserError(f"--format: found {name!r}; expected one or more of: {', '.join(FORMATS)}")
    reading = timings.reading(folder) if folder.is_file() else read(folder)
    folder = folder.with_suffix("") if folder.is_file() else folder
    page = compose(folder, reading, draw=figures and not WITH_FIGURES.isdisjoint(wanted))
    try:
        folder.mkdir(exist_ok=True)
        _write_figures(page, folder / "plots")
        for name in wanted:
            for file, render in FORMATS[name].items():
                _write(folder / file, render(page).encode("utf-8"))
    except OSError as error:
        raise UserError(f"RESULTS: cannot write the report to {str(folder)!r}: {error.strerror}") from error
    return folder / next(iter(FORMATS["html" if "html" in wanted else wanted[0]]))


def _write_figures(page: Page, folder: Path) -> None:
    for figure in (drawn for section in page.groups for block in section.blocks for drawn in block.figures):
        folder.mkdir(exist_ok=True)
        _write(folder / f"{figure.stem}.svg", figure.svg)
        _write(folder / f"{figure.stem}.png", figure.png)


def _write(path: Path, content: bytes) -> None:
    """Write at once or not at all: a reader never meets half a page."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
