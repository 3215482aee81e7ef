"""The report as Markdown, for a terminal or a forge's page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from bench.report.page import BESIDE, Page
from bench.report.tables import Table, Value

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")


def render(page: Page) -> str:
    """``report.md``: the same sections as the page, its figures as links to ``plots/``."""
    parts = [f"# {escape(page.title)}", page_facts(page)]
    if page.reductions:
        parts.append(
            "## Reduced or changed\n\n"
            "These sweeps ran at less than the paper's size, or with settings of the command line."
        )
        parts.append("\n".join(f"- **{escape(name)}** {escape(words)}" for name, words in page.reductions))
    for section in page.groups:
        parts.append(f"## Data set {escape(section.title)}")
        parts += ["### Summary by defense", table(section.summary)]
        for titled in section.paper:
            parts += [f"### {escape(titled.title)}", table(titled.table)]
            parts += [f"{escape(BESIDE)}:", table(titled.beside)] if titled.beside else []
        for block in section.blocks:
            parts += [f"### {block.title}", escape(block.caption)]
            for figure in block.figures:
                parts += [f"![{escape(figure.label)}](plots/{figure.stem}.png)", escape(figure.note)]
    for title, pictures in (("Trigger gallery", page.galleries), ("Recovered triggers", page.recovered)):
        parts += [f"## {title}"] if pictures else []
        parts += [f"![{escape(picture.caption)}]({quote(picture.path)})" for picture in pictures]
    if page.unscored is not None:
        parts += ["## Records not scored", "They enter no mean.", table(page.unscored)]
    parts += ["## Every record", _constants(page), table(page.records.table)]
    parts += ["## What the figures count"]
    parts.append("\n".join(f"- **{escape(term)}** {escape(meaning)}" for term, meaning in page.legend))
    return "\n\n".join(part for part in parts if part) + "\n"


def page_facts(page: Page) -> str:
    return "\n".join(f"- {escape(name)}: {escape(text)}" for name, text in page.facts)


def _constants(page: Page) -> str:
    told = ", ".join(f"{name} {value.text}" for name, value in page.records.constants)
    return escape(f"The same for all: {told}.") if told else ""


def table(shown: Table) -> str:
    heads = [escape(" ".join(part for part in (head.over, head.text) if part)) for head in shown.heads]
    rules = ["---:" if head.numeric else "---" for head in shown.heads]
    lines = [_line(heads), _line(rules), *(_line(map(_value, row)) for row in shown.rows)]
    return "\n".join(lines) + "".join(f"\n\n{escape(note)}" for note in shown.notes)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _value(value: Value) -> str:
    text = escape(value.text) + "".join(f" {mark.symbol}" for mark in value.marks)
    text += f" ({escape(value.note)})" if value.note else ""
    return text + (f" paper {escape(value.published)}" if value.published else "")


def escape(text: str) -> str:
    """Text that Markdown takes literally, on one line; HTML in it stays inert."""
    return _SPECIAL.sub(_spelled, " ".join(text.split()))


def _spelled(found: re.Match[str]) -> str:
    letter = found.group(1)
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(letter, f"\\{letter}")
