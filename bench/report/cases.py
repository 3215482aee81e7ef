"""Attack cases under defenses: which records make a table's line, and their ACC and ASR with marks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.report import beside, given, marks, names, tables
from bench.report.groups import Estimate, by, estimate, ordered, repetitions
from bench.report.rows import Row
from bench.report.tables import Head, Table, Value, beneath, measured

NO_DEFENSE = names.defense_name("none")
INTERVAL_OF_ONE = "Beneath a figure: the record's own 95 % interval."
SHARED = " A mean's is nowhere narrower than a single one's: they share images."
INTERVAL_OF_SEVERAL = "Beneath a figure: the 95 % interval of its mean over {} {}." + SHARED
INTERVAL_OF_EITHER = (
    "Beneath a figure: the 95 % interval of its mean over {} (×k: k of them), or for one {} the record's own." + SHARED
)
_TRAINING = "training "


@dataclass(frozen=True)
class Line:
    """One victim (over its repetitions) and one n: the repetitions of every defense, by the name of its column."""

    cells: Mapping[str, Sequence[Row]]
    size: float | None

    @property
    def first(self) -> Row:
        return next(iter(self.cells.values()))[0]


Pair = tuple[Value, Value]


def lines(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Line]:
    """A line for each victim and each n, in the paper's order of attacks."""
    found = []
    for members in by(rows, lambda row: row.victim_key).values():
        sizes: list[float | None] = [*sorted({row.clean_size for row in members if row.clean_size is not None})]
        for size in sizes or [None]:
            here = [row for row in members if row.clean_size in (size, None)]
            if not any(row.defense == "none" for row in here):
                here = [*_undefended(here), *here]
            cells = by(here, lambda row: NO_DEFENSE if row.defense == "none" else labels[row.id])
            found.append(Line(cells, size))
    return sorted(found, key=_order)


def columns(found: Sequence[Line], labels: Mapping[str, str]) -> list[str]:
    rows = [row for line in found for cell in line.cells.values() for row in cell]
    told = {**labels, **{row.id: NO_DEFENSE for row in rows if row.defense == "none"}}
    return ordered(rows, told)


def _order(line: Line) -> tuple[Any, ...]:
    row = line.first
    return (
        place_of(row),
        row.attack,
        row.target,
        row.model,
        row.checkpoint,
        -(row.poison_ratio or 0),
        -(line.size or 0),
    )


def place_of(row: Row) -> int:
    """Where the paper has the row's attack; others come last."""
    attack = beside.attack_of(row)
    return names.ATTACK_ORDER.index(attack) if attack in names.ATTACK_ORDER else len(names.ATTACK_ORDER)


def _undefended(rows: Sequence[Row]) -> list[Row]:
    """The victims themselves as rows of ``none``, from what the records say of them."""
    victims = by((row for row in rows if {"acc", "asr"} <= row.before.keys()), lambda row: row.seed)
    return [undefended(first) for first, *_ in victims.values()]


def undefended(row: Row) -> Row:
    """The row's victim as a row of ``none``."""
    blank: dict[str, Any] = {"defense": "none", "settings": {}, "clean_size": None, "radius": None, "intervals": {}}
    blank |= {"status": "ok", "rounds": (), "triggers": row.triggers_before}
    figures = {name: value for name, value in row.before.items() if name != "seconds"}  # of its training
    return replace(row, id=f"victim of {row.id}", figures=figures, **blank)


def pairs(line: Line) -> dict[str, Pair]:
    """(ACC, ASR) of every column, marked as the paper marks them."""
    found = {column: (estimate(rows, "acc"), estimate(rows, "asr")) for column, rows in line.cells.items()}
    marked = marks.mark(_outcomes(line, found))
    values: dict[str, Pair] = {}
    for column, (acc, asr) in found.items():
        if acc is None or asr is None:
            continue
        row = line.cells[column][0]
        theirs = beside.one_trigger(row, line.size) if row.one_trigger else beside.multi_trigger(row, "average")
        made = [
            value(figure, metric, theirs[place], marked[column][place])
            for place, (figure, metric) in enumerate(((acc, "acc"), (asr, "asr")))
        ]
        values[column] = (made[0], _undetected(made[1], line.cells[column]))
    return values


def _undetected(asr: Value, rows: Sequence[Row]) -> Value:
    """With × where no repetition detected a trigger, and in how many where only some did not."""
    found = [row for row in rows if row.scored]
    count = sum(row.status == "no_trigger_detected" for row in found)
    if 0 < count < len(found):
        told = f"{marks.UNDETECTED.symbol} in {count} of {len(found)}"
        return replace(asr, note=f"{told}, {asr.note}" if asr.note else told)
    return replace(asr, marks=(*asr.marks, marks.UNDETECTED)) if count else asr


def value(figure: Estimate, metric: str, theirs: str, found: Sequence[marks.Mark], digits: int = 1) -> Value:
    text = names.percent(figure.mean, digits)
    return Value(text, beneath(figure, metric, digits), theirs, tuple(found), sort=figure.mean, estimate=figure)


def _outcomes(line: Line, found: Mapping[str, tuple[Estimate | None, Estimate | None]]) -> dict[str, marks.Outcome]:
    outcomes = {}
    for column, (acc, asr) in found.items():
        if acc is not None and asr is not None:
            before = [row.before["acc"] for row in line.cells[column] if "acc" in row.before]
            mean_before = sum(before) / len(before) if before else None
            outcomes[column] = marks.Outcome(line.cells[column][0].defense, acc.mean, asr.mean, mean_before)
    return outcomes


def attack_text(row: Row) -> str:
    """The attack case as the paper writes it."""
    known = beside.attack_of(row)
    if known in names.ATTACK_ORDER:
        return names.attack_name(known)
    return names.attack_name(row.attack)


def _facts(line: Line) -> dict[str, str]:
    """What tells one line from another, besides the attack."""
    row = line.first
    facts = {
        "checkpoint": row.checkpoint,
        "model": row.model,
        "poison ratio": names.ratio_name(row.poison_ratio),
        "n": names.plain(line.size),
        **_training(row),
        "clean label": _clean_label(row.cell.get("clean_label")),
        "mix": str(row.cell.get("mix") or ""),
    }
    return {key: text for key, text in facts.items() if text not in ("", "–")}


def _training(row: Row) -> dict[str, str]:
    """How the victim was trained, key by key: ``training epochs``, ``training batch size``, ..."""
    training = row.cell.get("training")
    if not isinstance(training, dict):
        return {}
    return {_TRAINING + key.replace("_", " "): names.text_of(value) for key, value in training.items()}


def _clean_label(value: object) -> str:
    """``adversarial`` for images perturbed first, ``yes`` for images as they are."""
    return "yes" if value is True else str(value or "")


def told_apart(found: Sequence[Line], hidden: frozenset[str] = frozenset()) -> tuple[list[str], list[str]]:
    """For each line what tells it from others, and as notes what all share and what the defenses were set to.

    ``hidden``: facts the table shows.
    """
    facts = [_facts(line) for line in found]
    keys = [key for key in dict.fromkeys(key for each in facts for key in each) if key not in hidden]
    varying = [key for key in keys if len({each.get(key) for each in facts}) > 1]
    apart = [", ".join(_fact(key, each[key]) for key in varying if key in each) for each in facts]
    shared = [_fact(key, facts[0][key]) for key in keys if key not in varying and not key.startswith(_TRAINING)]
    everywhere = [f"Everywhere: {', '.join(shared)}."] if shared else []
    return apart, everywhere + given.note([row for line in found for cell in line.cells.values() for row in cell])


def _fact(key: str, text: str) -> str:
    return text if key in ("checkpoint",) else f"{key} {text}"


def names_of(found: Sequence[Line]) -> tuple[list[Value], list[str]]:
    """What stands left of each line, and the notes."""
    apart, notes = told_apart(found)
    texts = []
    for line, more in zip(found, apart, strict=True):
        row = line.first
        attack = attack_text(row)
        target = (
            "" if row.target == beside.ALL_TO_ALL and beside.attack_of(row) else f"→ {names.target_name(row.target)}"
        )
        texts.append(Value(attack, ", ".join(part for part in (target if row.one_trigger else "", more) if part)))
    return texts, notes


def side_by_side(found: Sequence[Line], labels: Mapping[str, str]) -> Table:
    """The layout of Tables 1 and 2: a line each case, ACC and ASR under every defense."""
    shown = columns(found, labels)
    left, notes = names_of(found)
    body = []
    for name, line in zip(left, found, strict=True):
        cells = pairs(line)
        body.append((name, *(each for column in shown for each in cells.get(column, (Value("–"), Value("–"))))))
    heads = [Head("Attack", numeric=False), *(Head(text, over=name) for name in shown for text in ("ACC", "ASR"))]
    return finished(heads, body, notes)


def stacked(found: Sequence[Line], labels: Mapping[str, str], head: str, write: Callable[[Line], Value]) -> Table:
    """The layout of Tables 4 and 5: an ACC and an ASR row for each value of an axis, a column each defense."""
    shown = columns(found, labels)
    hidden = frozenset({"poison ratio"} if head == "Poison ratio" else {"n"})
    apart, notes = told_apart(found, hidden)
    attacks = {attack_text(line.first) for line in found}
    body = []
    for line, more in zip(found, apart, strict=True):
        cells = pairs(line)
        told = ", ".join(part for part in (attack_text(line.first) if len(attacks) > 1 else "", more) if part)
        for place, metric in enumerate(("ACC", "ASR")):
            first = replace(write(line), note=told)
            body.append(
                (first, Value(metric), *(cells[name][place] if name in cells else Value("–") for name in shown))
            )
    attack = [f"Attack: {attacks.pop()}."] if len(attacks) == 1 else []
    heads = (Head(head, numeric=False), Head("Result", numeric=False), *map(Head, shown))
    return finished(heads, body, [*attack, *notes])


def finished(heads: Sequence[Head], body: Sequence[Sequence[Value]], notes: Sequence[str]) -> Table:
    """A table with what its marks, intervals and signs mean beneath it."""
    values = [value for row in body for value in row]
    estimates = [value.estimate for value in values if value.estimate]
    counts = {each.count for each in estimates}
    every = counts.pop() if len(counts) == 1 else None
    rows = [tuple(_without_count(value, every) for value in row) for row in body]
    interval = _interval(every, repetitions(estimates)) if any(each.low is not None for each in estimates) else ""
    some = any(value.note.startswith(f"{marks.UNDETECTED.symbol} in ") for value in values)
    shown = {mark for value in values for mark in value.marks} | ({marks.UNDETECTED} if some else set())
    found = [mark for mark in marks.ALL if mark in shown]
    told = [f"{' · '.join(f'{mark.symbol} {mark.short}' for mark in found)}."] if found else []
    paper = [beside.NOTE] if any(value.published for value in values) else []
    signs = [f"{sign} {text}" for sign, text in beside.SIGNS.items() if any(sign in each.published for each in values)]
    sources = " ".join(filter(None, [interval, *paper]))
    return Table(tuple(heads), tuple(rows), (*notes, *told, *([sources] if sources else []), *signs))


def _interval(every: int | None, kind: str) -> str:
    """What stands beneath the figures, of which each is the mean over ``every`` of a kind, or None if they differ."""
    if every is None:
        return INTERVAL_OF_EITHER.format(kind, kind.split()[0].removesuffix("s"))
    return INTERVAL_OF_SEVERAL.format(every, kind) if every > 1 else INTERVAL_OF_ONE


def _without_count(value: Value, every: int | None) -> Value:
    """The number of repetitions is told once where it is the same everywhere."""
    return value if every is None else replace(value, note=value.note.removesuffix(f" ×{every}"))


def measures(found: Sequence[Line], labels: Mapping[str, str]) -> Table:
    """RA, DER, time, memory and passes of the same cells: a row each case and defense."""
    left, _ = names_of(found)
    shown = columns(found, labels)
    told = tables.measures(row for line in found for rows in line.cells.values() for row in rows)
    body = []
    for name, line in zip(left, found, strict=True):
        for column in shown:
            rows = line.cells.get(column, [])
            if not rows or (column == NO_DEFENSE and not {"der", "ra"} & rows[0].figures.keys()):
                continue
            values = [measured(rows, metric, write) for _, metric, write in told]
            seeds = len({row.seed for row in rows})
            body.append((name, Value(column), Value(str(seeds), sort=seeds), *values))
    left_heads = (Head("Attack", numeric=False), Head("Defense", numeric=False), Head("Seeds"))
    heads = (*left_heads, *(Head(text) for text, _, _ in told))
    estimates = [value.estimate for row in body for value in row if value.estimate]
    several = any(each.count > 1 for each in estimates)
    mean = f"Mean over {repetitions(estimates)}{tables.spread(body)}. " if several else ""
    return Table(heads, tuple(body), (f"{mean}Rates in percent. {tables.TO_EFFECT_MEANING}",))
