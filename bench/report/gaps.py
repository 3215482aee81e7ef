"""Tables 7 and 8: the error gap of models defended by I-BAU, over the network's width and over n."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench import published
from bench.intervals import Z
from bench.report import beside, cases, given, names, settings
from bench.report.groups import by, estimate, ordered, variants
from bench.report.rows import Row
from bench.report.tables import Head, Table, Titled, Value

HEADS = ("Error gap", "By chance", "ACC", "ASR")
_NETWORKS = {each.model: each for each in published.TABLE_7}
NOTE = (
    "Error gap: the absolute difference between the error on triggered images of the clean set, which the defense saw, "
    "and on triggered test images, in percent."
)
CHANCE = (
    "By chance: the gap to expect of sampling alone, if the model erred on triggered images of both sets alike. It too "
    "falls with n."
)
CHAINS = frozenset({"simplified_vgg"})
"""The networks that Theorem 3 is about (``ibau_defense.bounds.chain``)."""


def over_width(scored: Sequence[Row]) -> list[Row]:
    """I-BAU's records of victims alike but for the network, at one n."""
    rows = _measured(scored)
    size = settings.setting(rows, "clean_size", published.CLEAN_SIZE)
    alike = by((row for row in rows if row.clean_size == size), lambda row: row.victim_but("model", "training"))
    return [row for members in alike.values() if len({row.model for row in members}) > 1 for row in members]


def over_size(scored: Sequence[Row]) -> list[Row]:
    """I-BAU's records of victims with several clean sizes."""
    alike = by(_measured(scored), lambda row: row.victim_key)
    return [row for members in alike.values() if len({row.clean_size for row in members}) > 1 for row in members]


def sampling_error(rows: Sequence[Row]) -> float | None:
    """The standard error that sampling gives the signed gap, in [0, 1]: mean over ``rows``, None where one lacks RA.

    √(e(1 − e)/n + s²): e = 1 − RA is the error on triggered test images, and s its own standard error.
    """
    found = []
    for row in rows:
        if "ra" not in row.figures or "ra" not in row.intervals or row.clean_size is None or row.clean_size <= 0:
            return None
        low, high = row.intervals["ra"]
        error = 1.0 - row.figures["ra"]
        found.append(math.hypot(math.sqrt(error * (1.0 - error) / row.clean_size), (high - low) / (2 * Z)))
    return math.fsum(found) / len(found) if found else None


def expected(error: float) -> float:
    """The mean absolute value of a gap of that standard error and of no mean, over however many repetitions."""
    return math.sqrt(2 / math.pi) * error


def width_of(row: Row) -> int | None:
    """W of the row's network where the paper tells it."""
    known = _NETWORKS.get(row.model)
    return known.width if known else None


def by_width(scored: Sequence[Row]) -> Titled | None:
    """Sorted by width where it is known."""
    several = over_width(scored)
    if not several:
        return None
    left = (Head("Model", numeric=False), Head("Parameters (paper)"), Head("W (paper)"))
    return Titled("7_width", "Table 7 · Error gap over width", _table(several, left, _network))


def by_size(scored: Sequence[Row]) -> Titled | None:
    """A row for each victim and each of its clean sizes."""
    several = over_size(scored)
    if not several:
        return None
    left = (Head("Clean images", numeric=False), Head("Model", numeric=False))
    return Titled("8_clean_images", "Table 8 · Error gap over n", _table(several, left, _size))


def _measured(scored: Sequence[Row]) -> list[Row]:
    rows = [row for row in scored if row.defense == "ibau" and "error_gap" in row.figures]
    rows, _ = settings.at_one_radius([row for row in rows if row.one_trigger and row.clean_size is not None])
    ratio = settings.setting(rows, "poison_ratio", published.POISON_RATIO)
    return [row for row in rows if row.poison_ratio in (None, ratio)]


def _network(row: Row) -> tuple[Value, ...]:
    known = _NETWORKS.get(row.model)
    if known is None:
        return Value(row.model), Value("–"), Value("–")
    width, parameters = known.width, known.parameters
    return Value(row.model), Value(f"{parameters:,}", sort=parameters), Value(str(width), sort=width)


def _size(row: Row) -> tuple[Value, ...]:
    return Value(names.plain(row.clean_size), sort=row.clean_size), Value(row.model)


def _table(
    rows: Sequence[Row],
    left: tuple[Head, ...],
    write: Callable[[Row], tuple[Value, ...]],
) -> Table:
    """A row for each victim and n, a column for each way I-BAU was run; ACC and ASR stand with the gap."""
    labels = variants(rows)
    shown = ordered(rows, labels)
    attacks = {(row.attack, row.target) for row in rows}
    found = by(rows, lambda row: (row.victim_key, row.clean_size)).values()
    body = []
    for members in sorted(found, key=lambda each: _place(each[0])):
        first, *others = write(members[0])
        told = f"{cases.attack_text(members[0])} → {names.target_name(members[0].target)}" if len(attacks) > 1 else ""
        columns = by(members, lambda row: labels[row.id])
        figures = [value for label in shown for value in _figures(columns.get(label, []))]
        body.append((replace(first, note=told), *others, *figures))
    heads = (*left, *(Head(text, over=label) for label in shown for text in HEADS))
    size = {row.clean_size for row in rows}
    notes = [f"n = {names.plain(size.pop())}."] if len(size) == 1 else []
    if len(attacks) == 1:
        notes.append(f"Attack: {cases.attack_text(rows[0])} → {names.target_name(rows[0].target)}.")
    return cases.finished(heads, body, [*notes, *given.note(rows), NOTE, CHANCE, _bound({row.model for row in rows})])


def _bound(models: set[str]) -> str:
    """Why Theorem 3's bound does not stand beside the gaps of these networks."""
    chains, others = sorted(models & CHAINS), sorted(models - CHAINS)
    told = ["No bound stands beside it."]
    if chains:
        told.append(f"Theorem 3's for {', '.join(chains)}, a chain of layers, is above 100 % by orders of magnitude.")
    if others:
        told.append(f"For {', '.join(others)} there is none: Theorem 3 is about chains, without skips or branches.")
    return " ".join([*told, "docs/theory.md plots gap and bound over W and over n."])


def _place(row: Row) -> tuple[object, ...]:
    known = _NETWORKS.get(row.model)
    return (row.attack, row.target, known.width if known else 0, row.model, row.clean_size or 0.0)


def _figures(rows: Sequence[Row]) -> list[Value]:
    """One for each of ``HEADS``."""
    error = sampling_error(rows)
    chance = Value("–") if error is None else Value(names.percent(expected(error), 2), sort=expected(error))
    gap, acc, asr = (_figure(rows, metric) for metric in ("error_gap", "acc", "asr"))
    return [gap, chance, acc, asr]


def _figure(rows: Sequence[Row], metric: str) -> Value:
    figure = estimate(rows, metric)
    if figure is None:
        return Value("–")
    digits, theirs = (2, beside.gap(rows[0])) if metric == "error_gap" else (1, "")
    return cases.value(figure, metric, theirs, [], digits)
