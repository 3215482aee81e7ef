"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from bench.report import marks, style
from bench.report.page import BESIDE, Drawn, Page


def render(page: Page) -> str:
    """``report.html``. Everything that comes from a record is escaped by the template."""
    folder = files("bench.report")
    # Only the package's own files are marked as safe; nothing in them comes from a record.
    css = Markup(folder.joinpath("report.css").read_text(encoding="utf-8"))
    script = Markup(folder.joinpath("report.js").read_text(encoding="utf-8"))
    return _template().render(page=page, css=css, script=script, figure=_figure, marks=marks.ALL, beside=BESIDE)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("bench.report").joinpath("template.html.j2").read_text(encoding="utf-8"))


def _figure(drawn: Drawn) -> Markup:
    """A figure's SVG for the page. matplotlib has escaped the text in it; the label is escaped here."""
    return Markup(style.inline(drawn.svg, drawn.stem, str(escape(drawn.label))))
