"""The whole report as one value: what stands on the page, before it is HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import attachments, beside, groups, paper, records_table, sweep_files, tables
from bench.report.attachments import Picture
from bench.report.records_table import Records
from bench.report.rows import Reading, Row
from bench.report.tables import Table, Titled

LEGEND = (
    ("ACC", "accuracy on clean test images of the scoring set, none of which the defender ever held."),
    (
        "ASR",
        "attack success rate: the share of triggered scoring images that get the label the attacker wants. Images "
        "whose true label is already the target are left out; all to all, label i counts as hit when it becomes i + 1.",
    ),
    ("RA", "recovery accuracy: the share of those same triggered images that get their true label."),
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
    (
        "Under PGD r",
        "accuracy on clean scoring images while each of them is attacked within ℓ2 distance r, on request.",
    ),
    ("paper", beside.MEANING),
    ("n", "how many clean images the defender holds."),
    ("Cδ", "the radius of the ball that I-BAU looks for its perturbation in, with pixels in [0, 1]."),
    ("Poison ratio", "poisoned images as a share of the whole training set."),
)

_BLOCKS = {
    "trade-off": (
        "Trade-off",
        "One point a record; on the last figure the mean of each defense, larger the longer it took. In the shaded "
        "band, ASR under 20 %, the paper counts a defense as effective. Left is better; up for ACC, down for seconds.",
    ),
    "spread": (
        "Run-to-run spread",
        "Every run of an attack case that differs in seed or run alone, where there are three or more; the bar is the "
        "median, the line the range.",
    ),
    "sensitivity": (
        "Sensitivity",
        "The other axes as in the paper, or at their largest. Line: mean; band: its 95 % interval, over attack cases "
        "and repetitions or of the one record. A defense with one value of an axis has no line there.",
    ),
    "gap": (
        "Error gap",
        "Of models defended by I-BAU, over the width W of the network and over n clean images; band: its 95 % "
        "interval. The bound of Theorem 3 does not fit on these axes; docs/theory.md has both.",
    ),
    "maps": (
        "I-BAU over Cδ and n",
        "Mean over what else varies, in percent. One colour scale for all maps of a metric; darker is better. A dash: "
        "no scored record.",
    ),
    "rounds": (
        "Round by round",
        "One line a record, from the undefended model at round 0; of several triggers also the mean of each.",
    ),
    "tsne": (
        "Features by t-SNE",
        "The input of the network's last layer, laid out for each model by itself: clean images in the colour of their "
        "class, triggered ones in black (white on a dark page).",
    ),
}


BESIDE = "RA, DER, time, memory and passes of the same cells"


@dataclass(frozen=True)
class Drawn:
    """A figure as files: ``svg`` and ``png`` are their bytes. ``note``: what it leaves out."""

    stem: str
    label: str
    svg: bytes
    png: bytes
    note: str = ""


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
    paper: tuple[Titled, ...]
    blocks: tuple[Block, ...]

    @property
    def tables(self) -> list[tuple[str, Table]]:
        """Every table by name, what stands beside one as NAME_beside."""
        found = [("summary", self.summary)]
        for titled in self.paper:
            found.append((titled.stem, titled.table))
            found += [(f"{titled.stem}_beside", titled.beside)] if titled.beside else []
        return found


@dataclass(frozen=True)
class Page:
    title: str
    statuses: tuple[tuple[str, int], ...]
    facts: tuple[tuple[str, str], ...]
    groups: tuple[Section, ...]
    unscored: Table | None
    records: Records
    galleries: tuple[Picture, ...] = ()
    recovered: tuple[Picture, ...] = ()
    reductions: tuple[tuple[str, str], ...] = ()
    """What a budget left out: sweep file and words."""
    legend: tuple[tuple[str, str], ...] = LEGEND


def compose(folder: Path, reading: Reading, draw: bool = True) -> Page:
    """The page of all records, with the pictures that lie in ``folder``; with ``draw`` every figure is drawn."""
    files = sweep_files.read(folder)
    rows = sweep_files.assign(reading.rows, files)
    labels = groups.variants(rows)
    statuses = _statuses(rows)
    facts = [("Records", f"{len(rows)} ({', '.join(f'{count} {status}' for status, count in statuses)})")]
    if reading.unreadable:
        facts.append(("Unreadable lines, left out", str(reading.unreadable)))
    facts += records_table.doubts(rows)
    facts += _missing(files, {row.id for row in rows})
    facts.append(("Schema", ", ".join(sorted({row.schema or "unknown" for row in rows}))))
    facts += [(key.replace("_", " "), text) for key, text in records_table.provenance(rows)]
    facts += [("budget", files.budget)] if files.budget else []
    parts = groups.groups(rows)
    sections = tuple(_section(group, labels, number, draw) for number, group in enumerate(parts, 1))
    unscored = records_table.unscored(rows, labels)
    return Page(
        title=folder.resolve().name,
        statuses=statuses,
        facts=tuple(facts),
        groups=sections,
        unscored=unscored,
        records=records_table.records(rows, labels),
        galleries=attachments.galleries(folder),
        recovered=attachments.recovered(folder, rows, labels),
        reductions=files.reductions,
    )


def _missing(files: sweep_files.SweepFiles, known: set[str]) -> list[tuple[str, str]]:
    """Of a sweep that is not done: what is said here is said without the rest."""
    cells = frozenset[str]().union(*files.cells.values())
    left = cells - known
    return [("Not done", f"{len(left)} of {len(cells)} cells have no record yet")] if left else []


def _statuses(rows: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    counts = {status: len(members) for status, members in groups.by(rows, lambda row: row.status).items()}
    return tuple(sorted(counts.items(), key=lambda item: (item[0] != "ok", -item[1], item[0])))


def _section(group: groups.Group, labels: dict[str, str], place: int, draw: bool) -> Section:
    return Section(
        group.title,
        tables.summary(group.rows, labels),
        paper.tables(group),
        _blocks(group, place) if draw else (),
    )


def _blocks(group: groups.Group, place: int) -> tuple[Block, ...]:
    from bench.report import figures, style

    with style.drawing():
        found = []
        for plot in figures.draw(group):
            svg, png = style.save(plot.figure)
            found.append((plot.section, Drawn(_stem(group, plot.stem, place), plot.label, svg, png, plot.note)))
    blocks = [
        Block(title, caption, tuple(drawn for where, drawn in found if where == name))
        for name, (title, caption) in _BLOCKS.items()
    ]
    return tuple(block for block in blocks if block.figures)


def _stem(group: groups.Group, name: str, place: int) -> str:
    """A file name that no data set's name can make unsafe; the place tells groups of like names apart."""
    safe = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in group.rows[0].dataset)[:40]
    return f"{place}-{safe.strip('-') or 'data'}-{name}".lower()
