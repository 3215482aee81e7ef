"""The report's tables as plain values, before they are Markdown or HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import published
from bench.report import marks, names
from bench.report.groups import Group, by, estimate, ordered
from bench.report.rows import Row


@dataclass(frozen=True)
class Value:
    """A table cell: the figure, what stands small beneath it, the paper's figure and marks, a key to sort by."""

    text: str
    note: str = ""
    published: str = ""
    marks: tuple[marks.Mark, ...] = ()
    sort: float | str | None = None


@dataclass(frozen=True)
class Head:
    text: str
    over: str = ""
    """The heading above it, shared with its neighbours."""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    heads: tuple[Head, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def bands(self) -> list[tuple[str, int]]:
        """The upper row of headings: text and how many columns it spans."""
        found: list[tuple[str, int]] = []
        for head in self.heads:
            if found and head.over and found[-1][0] == head.over:
                found[-1] = (head.over, found[-1][1] + 1)
            else:
                found.append((head.over, 1))
        return found if any(text for text, _ in found) else []


def summary(group: Group, labels: dict[str, str]) -> Table:
    """One row a defense: means over its scored cells with the smallest and the largest value beneath."""
    heads = ["Cells", "Seeds", "ACC", "ASR", "RA", "DER", "Seconds", "Passes forward", "Passes backward", "Peak memory"]
    devices = {str(row.provenance.get("device", "")) for row in group.scored}
    rows = []
    members = by(group.rows, lambda row: labels[row.id])
    for label in ordered(group.rows, labels):
        all_rows = members[label]
        scored = [row for row in all_rows if row.scored]
        cells = Value(
            f"{len(scored)}",
            f"{len(all_rows) - len(scored)} not scored" if len(scored) < len(all_rows) else "",
        )
        values = [_spread(scored, metric, names.percent) for metric in ("acc", "asr", "ra", "der")]
        values.append(_spread(scored, "seconds", names.seconds_name))
        values += [_spread(scored, direction, names.count_name) for direction in ("forward", "backward")]
        values.append(_spread(scored, "peak_memory_bytes", names.bytes_name))
        rows.append((Value(label), cells, Value(str(len({row.seed for row in scored}))), *values))
    notes = ["Mean over the scored cells; smallest to largest beneath. Rates in percent."]
    if len(devices) > 1:
        notes.append(f"Times and memory come from {len(devices)} devices: compare them only within one.")
    return Table((Head("Defense", numeric=False), *map(Head, heads)), tuple(rows), tuple(notes))


def _spread(rows: Sequence[Row], metric: str, write: Callable[[float | None], str]) -> Value:
    found = estimate(rows, metric)
    if found is None:
        return Value("–")
    least, most = write(found.least), write(found.most)
    span = f"{least}–{most}" if least != most else ""
    return Value(write(found.mean), span, sort=found.mean)


def paper_style(group: Group, labels: dict[str, str]) -> Table | None:
    """The paper's layout for one-trigger cells: a row each attack case, ACC and ASR under every defense."""
    rows = [row for row in group.scored if row.one_trigger]
    if not rows:
        return None
    if all(row.defense != "none" for row in rows):
        undefended = _undefended(rows)
        rows, labels = [*undefended, *rows], labels | {row.id: names.defense_name("none") for row in undefended}
    columns = _columns(rows, labels)
    cases = by(rows, lambda row: row.victim_key)
    body = []
    for case in cases.values():
        sizes: list[float | None] = [*sorted({row.clean_size for row in case if row.clean_size is not None})]
        for size in sizes or [None]:
            here = [row for row in case if row.clean_size in (size, None)]
            by_column = by(here, lambda row: _column(row, labels, columns))
            body.append((*_case(case[0], size), *_pairs(by_column, list(columns), size)))
    left = [Head(text, numeric=False) for text in ("Model", "Attack", "Target")] + [Head("Poison ratio"), Head("n")]
    heads = [*left, *(Head(metric, over=name) for name in columns for metric in ("ACC", "ASR"))]
    told = [
        place
        for place in range(len(left))
        if len(body) > 1 and len({(row[place].text, row[place].note) for row in body}) == 1
    ]
    kept = [place for place in range(len(heads)) if place not in told]
    notes = _paper_notes(body)
    if told:
        same = ", ".join(f"{heads[place].text.lower()} {body[0][place].text}" for place in told)
        notes.insert(0, f"In every row: {same}.")
    shown = tuple(tuple(row[place] for place in kept) for row in body)
    return Table(tuple(heads[place] for place in kept), shown, tuple(notes))


def _undefended(rows: Sequence[Row]) -> list[Row]:
    """The victims themselves as rows of ``none``, from what the records say of them."""
    victims = by((row for row in rows if {"acc", "asr"} <= row.before.keys()), lambda row: (row.victim_key, row.seed))
    blank: dict[str, Any] = {"defense": "none", "settings": {}, "clean_size": None, "radius": None, "intervals": {}}
    return [replace(first, id=f"victim of {first.id}", figures=first.before, **blank) for first, *_ in victims.values()]


def _columns(rows: Sequence[Row], labels: dict[str, str]) -> dict[str, None]:
    """Column names in order: a variant, and with it the radius where a variant was run with several."""
    found: dict[str, None] = {}
    radii = {label: {row.radius for row in rows if labels[row.id] == label} for label in set(labels.values())}
    for label in ordered(rows, labels):
        for radius in sorted(radii[label], key=lambda each: (each is not None, each or 0.0)):
            found[_with_radius(label, radius) if len(radii[label]) > 1 else label] = None
    return found


def _with_radius(label: str, radius: float | None) -> str:
    return f"{label}, Cδ = {names.plain(radius)}"


def _column(row: Row, labels: dict[str, str], columns: dict[str, None]) -> str:
    label = labels[row.id]
    return label if label in columns else _with_radius(label, row.radius)


def _case(row: Row, size: float | None) -> list[Value]:
    model = Value(row.model, note=row.checkpoint)
    return [
        model,
        Value(names.attack_name(row.attack)),
        Value(names.target_name(row.target)),
        Value(names.ratio_name(row.poison_ratio), sort=row.poison_ratio),
        Value(names.plain(size), sort=size),
    ]


def _pairs(cells: dict[str, list[Row]], columns: list[str], size: float | None) -> list[Value]:
    """ACC and ASR of every column in one row of the table."""
    found = {column: (estimate(rows, "acc"), estimate(rows, "asr")) for column, rows in cells.items()}
    outcomes = {}
    for column, (acc, asr) in found.items():
        if acc is not None and asr is not None:
            before = [row.before["acc"] for row in cells[column] if "acc" in row.before]
            mean_before = sum(before) / len(before) if before else None
            outcomes[column] = marks.Outcome(cells[column][0].defense, acc.mean, asr.mean, mean_before)
    dataset = next(iter(cells.values()))[0].dataset if cells else ""
    marked = marks.mark(outcomes, dataset)
    values: list[Value] = []
    for column in columns:
        if column not in marked:
            values += [Value("–"), Value("–")]
            continue
        theirs = published_beside(cells[column][0], size)
        for place in (0, 1):
            figure = found[column][place]
            assert figure is not None
            note = names.percent_range(figure.low, figure.high)
            note += f" ×{figure.count}" if figure.count > 1 else ""
            text, sign = names.percent(figure.mean), tuple(marked[column][place])
            if all(row.status == "no_trigger_detected" for row in cells[column]):
                sign = (*sign, marks.UNDETECTED)
            values.append(Value(text, note, theirs[place], sign, sort=figure.mean))
    return values


def published_beside(row: Row, size: float | None) -> tuple[str, str]:
    """The paper's (ACC, ASR) for the row's setting, ``×`` where it detected no trigger, or two empty texts.

    A model brought by checkpoint does not tell its poison ratio; the paper's 20 % is assumed and marked ``†``.
    """
    ratio = row.poison_ratio if not row.cell.get("victim") else published.POISON_RATIO
    if ratio is None:
        return "", ""
    attack = row.target if row.target == "all_to_all" else row.attack
    if row.target == "all_to_all" and row.attack != "badnets":
        return "", ""
    count = None if size is None else int(size)
    found = published.lookup(
        row.dataset, attack, row.defense, model=row.model, poison_ratio=ratio, clean_size=count, radius=row.radius
    )
    if found is None:
        return "", ""
    sign = "†" if row.cell.get("victim") else ""
    acc, asr = ("×" if value is None else f"{100 * value:.2f}" for value in (found.acc, found.asr))
    return acc + sign, asr + sign


def _paper_notes(body: Sequence[Sequence[Value]]) -> list[str]:
    values = [value for row in body for value in row]
    shown = [mark for mark in marks.ALL if any(mark in value.marks for value in values)]
    notes = [f"{mark.symbol} {mark.meaning}." for mark in shown]
    notes.append(
        "Beneath a figure: the 95 % interval of its mean over seeds (×k: k seeds), or for one seed that of the "
        "record itself. A defense that does not use the clean set stands in every row of its victim."
    )
    if any(value.published for value in values):
        notes.append(
            f"“paper”: the figure published for the same setting ({published.SOURCE}). The authors' code counts "
            "in its ASR also images of the target class and images the defense trained on; ours counts neither."
        )
    if any("†" in value.published for value in values):
        notes.append("† The model came as a checkpoint: that its poison ratio is the paper's 20 % is assumed.")
    return notes
