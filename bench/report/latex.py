"""The report's tables as LaTeX: a document of its own, whose tables can be lifted into a paper (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.report import marks
from bench.report.page import BESIDE, Page
from bench.report.tables import Table, Value

MOST_COLUMNS = 9
"""A wider table is scaled to the line."""

_PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{amssymb,booktabs,graphicx,textcomp}
\setlength{\parindent}{0pt}
\begin{document}
"""

_SPELLED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "–": "--", "—": "---", "…": r"\dots{}", "·": r"$\cdot$", "×": r"$\times$", "→": r"$\rightarrow$",
    "⇒": r"$\Rightarrow$", "δ": r"$\delta$", "ℓ": r"$\ell$", "−": "$-$", "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}", "“": "``", "”": "''", "’": "'", "∞": r"$\infty$", "ε": r"$\varepsilon$",
    "[": "{[}", "]": "{]}", "*": "{*}",  # at the beginning of a line an argument of the \\ or \midrule before it
    "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "★": r"$\bigstar$", "✓": r"$\checkmark$",
}  # fmt: skip
_SPECIAL = re.compile(r"[^ !()+,./0-9:;=?@A-Za-z-]")


def render(page: Page) -> str:
    """``report.tex``. Everything that comes from a record is escaped; letters no font has are told by number."""
    parts = [_PREAMBLE, rf"\section*{{{escape(page.title)}}}"]
    parts.append("\\\\\n".join(f"{escape(name)}: {escape(text)}" for name, text in page.facts))
    parts += [rf"\textbf{{Reduced or changed, {escape(name)}:}} {escape(words)}" for name, words in page.reductions]
    for section in page.groups:
        parts.append(rf"\section*{{{escape(section.title)}}}")
        parts.append(table(section.summary, "Summary by defense"))
        for titled in section.paper:
            parts.append(table(titled.table, titled.title))
            parts += [table(titled.beside, f"{titled.title}: {BESIDE}")] if titled.beside else []
    if page.unscored is not None:
        parts.append(table(page.unscored, "Records not scored; they enter no mean"))
    parts.append("\\end{document}\n")
    return "\n\n".join(parts)


def table(shown: Table, title: str) -> str:
    """A ``tabular`` under its title, with its notes; scaled to the line if it is wide."""
    columns = "".join("r" if head.numeric else "l" for head in shown.heads)
    lines = [rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule"]
    lines += [_line(_band(text, span) for text, span in shown.bands)] if shown.bands else []
    lines += [_line(escape(head.text) for head in shown.heads), r"\midrule"]
    for row in shown.rows:
        lines.append(_line(map(_figure, row)))
        small = [_beneath(value) for value in row]
        lines += [_line(small)] if any(small) else []
    lines += [r"\bottomrule", r"\end{tabular}"]
    body = "\n".join(lines)
    if len(shown.heads) > MOST_COLUMNS:
        body = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body}}}"
    notes = "\\\\\n".join(escape(note) for note in shown.notes)
    return f"\\subsection*{{{escape(title)}}}\n{body}\n" + (f"\n{{\\footnotesize {notes}\\par}}\n" if notes else "")


def _band(text: str, span: int) -> str:
    return rf"\multicolumn{{{span}}}{{c}}{{{escape(text)}}}" if text else " & ".join([""] * span)


def _line(cells: Iterable[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _figure(value: Value) -> str:
    return escape(value.text) + "".join(f"$^{{{_symbol(mark)}}}$" for mark in value.marks)


def _symbol(mark: marks.Mark) -> str:
    return _SPELLED[mark.symbol].strip("$")


def _beneath(value: Value) -> str:
    parts = [escape(value.note), rf"\emph{{paper {escape(value.published)}}}" if value.published else ""]
    told = [part for part in parts if part]
    return rf"{{\scriptsize {' '.join(told)}}}" if told else ""


def escape(text: str) -> str:
    """Text that LaTeX takes literally, on one line."""
    return _SPECIAL.sub(lambda found: _spelled(found.group()), " ".join(text.split()))


def _spelled(letter: str) -> str:
    known = _SPELLED.get(letter)
    if known is not None:
        return known
    return letter if "À" <= letter <= "ž" else f"{{[}}U+{ord(letter):04X}{{]}}"
