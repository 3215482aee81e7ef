"""The whole report as one value: what stands on the page, before it is HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import groups, records_table, tables
from bench.report.records_table import Records
from bench.report.rows import Reading, Row
from bench.report.tables import Table

LEGEND = (
    ("ACC", "accuracy on clean test images of the scoring set, none of which the defender ever held."),
    (
        "ASR",
        "attack success rate: the share of triggered scoring images that get the label the attacker wants. Images "
        "whose true label is already the target are left out; all to all, label i counts as hit when it becomes i + 1.",
    ),
    ("RA", "robust accuracy: the share of those same triggered images that get their true label."),
    (
        "DER",
        "defense effectiveness rating: (max(0, drop in ASR) − max(0, drop in ACC) + 1) / 2, the drops taken against "
        "the undefended model. 50 % is a defense that does nothing, 100 % a perfect one.",
    ),
    (
        "Error gap",
        "absolute difference between the error on triggered images of the clean set, which the defense saw, and on "
        "triggered test images, which it did not.",
    ),
    ("Seconds", "the defense's own work; scoring between rounds is left out, and so is training the victim."),
    ("To effect", "the second up to the first round with ASR under 20 % and at most 10 points of ACC lost."),
    ("Forward, backward", "how many images went through the network in each direction during the defense."),
    ("Peak memory", "of the defense: allocated on the GPU, or growth of the process's memory on a CPU."),
    ("n", "how many clean images the defender holds."),
    ("Cδ", "the radius of the ball that I-BAU looks for its perturbation in, with pixels in [0, 1]."),
    ("Poison ratio", "poisoned images as a share of the whole training set."),
)

_BLOCKS = {
    "trade-off": (
        "Trade-off",
        "One point a record. The shaded band is ASR under 20 %, where the paper counts a defense as effective; up and "
        "to the left is better on the first figure, down and to the left on the second.",
    ),
    "sensitivity": (
        "Sensitivity",
        "Line: mean over everything else that varies (the other axes and the seeds). Band: smallest to largest. A "
        "defense that does not depend on an axis, or has one value of it, has no line there.",
    ),
    "maps": (
        "I-BAU over Cδ and n",
        "Mean over what else varies, in percent. One colour scale for all maps of a metric; darker is better. A dash: "
        "no scored record.",
    ),
    "rounds": ("Round by round", "One line a record, from the undefended model at round 0."),
}


@dataclass(frozen=True)
class Drawn:
    """A figure as files: ``svg`` and ``png`` are their bytes."""

    stem: str
    label: str
    svg: bytes
    png: bytes


@dataclass(frozen=True)
class Block:
    title: str
    caption: str
    figures: tuple[Drawn, ...]


@dataclass(frozen=True)
class Section:
    """What is told of records that may be compared."""

    title: str
    summary: Table
    paper: Table | None
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    title: str
    statuses: tuple[tuple[str, int], ...]
    facts: tuple[tuple[str, str], ...]
    groups: tuple[Section, ...]
    unscored: Table | None
    records: Records
    legend: tuple[tuple[str, str], ...] = LEGEND


def compose(title: str, reading: Reading) -> Page:
    """The page of all records; draws every figure."""
    rows = reading.rows
    labels = groups.variants(rows)
    statuses = _statuses(rows)
    facts = [("Records", f"{len(rows)} ({', '.join(f'{count} {status}' for status, count in statuses)})")]
    if reading.unreadable:
        facts.append(("Unreadable lines, left out", str(reading.unreadable)))
    facts.append(("Schema", ", ".join(sorted({row.schema or "unknown" for row in rows}))))
    facts += [(key.replace("_", " "), text) for key, text in records_table.provenance(rows)]
    parts = groups.groups(rows)
    sections = tuple(_section(group, labels, number) for number, group in enumerate(parts, 1))
    unscored = records_table.unscored(rows, labels)
    return Page(title, statuses, tuple(facts), sections, unscored, records_table.records(rows, labels))


def _statuses(rows: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    counts = {status: len(members) for status, members in groups.by(rows, lambda row: row.status).items()}
    return tuple(sorted(counts.items(), key=lambda item: (item[0] != "ok", -item[1], item[0])))


def _section(group: groups.Group, labels: dict[str, str], place: int) -> Section:
    from bench.report import plots, style

    with style.drawing():
        found = []
        for plot in plots.draw(group, labels):
            svg, png = style.save(plot.figure)
            found.append((plot.section, Drawn(_stem(group, plot.stem, place), plot.label, svg, png)))
    blocks = [
        Block(title, caption, tuple(drawn for where, drawn in found if where == name))
        for name, (title, caption) in _BLOCKS.items()
    ]
    return Section(
        group.title,
        tables.summary(group, labels),
        tables.paper_style(group, labels),
        tuple(block for block in blocks if block.figures),
    )


def _stem(group: groups.Group, name: str, place: int) -> str:
    """A file name that no data set's name can make unsafe; the place tells groups of like names apart."""
    safe = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in group.rows[0].dataset)[:40]
    return f"{place}-{safe.strip('-') or 'data'}-{name}".lower()
