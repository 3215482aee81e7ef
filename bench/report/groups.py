"""Which records may be averaged, what a defense's variants are called, and means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.report.names import COLUMN_ORDER, defense_name, text_of
from bench.report.rows import EVASION, Row, one_each
from bench.report.values import canonical

RATES = ("acc", "asr", "ra", "der", "error_gap")

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

# Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom; the normal quantile beyond.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Group:
    """Runs that may stand in one mean: of one schema, one data set (name and content), one way of splitting it."""

    title: str
    rows: tuple[Row, ...]

    @property
    def dataset(self) -> str:
        return self.rows[0].dataset

    @property
    def scored(self) -> list[Row]:
        return [row for row in self.rows if row.scored]

    @property
    def tried(self) -> list[Row]:
        """With those in which the defense diverged or ran out of time."""
        return [row for row in self.rows if row.tried]


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval (of the mean over repetitions, or a single record's own), and the range seen.

    Of the ``count`` repetitions, ``seeds`` differ in the seed; the others are further runs on the same victim.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    least: float
    most: float
    seeds: int = 1


def by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items gathered by key, in order of first appearance."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def groups(rows: Sequence[Row]) -> list[Group]:
    """The rows in parts that must never be averaged together.

    Records of one run are one row (``one_each``). A record that does not tell what its data set held is taken to be of
    the one content that others of that name have, and stands by itself where they have several.
    """
    contents = {name: {row.data for row in each} - {""} for name, each in by(rows, lambda row: row.dataset).items()}
    several = {name for name, each in contents.items() if len(each) > 1}
    parts = by(rows, lambda row: (row.dataset, row.data if row.dataset in several else "", row.schema, row.split))
    several_schemas = len({row.schema for row in rows}) > 1
    several_splits = len({(row.dataset, row.split) for row in rows}) > len({row.dataset for row in rows})
    found = []
    for (dataset, data, schema, split), members in sorted(parts.items()):
        title = dataset or "unnamed data set"
        title += f" · content {data[:8] or 'not told'}" if dataset in several else ""
        title += f" · schema {schema or 'unknown'}" if several_schemas else ""
        title += f" · split {split}" if several_splits else ""
        found.append(Group(title, tuple(one_each(members))))
    return found


def variants(rows: Sequence[Row]) -> dict[str, str]:
    """Record id to the name of its defense, with the settings that tell it from others of that name.

    Of these only such as have a value; a variant where none has is ``(defaults)``.
    """
    labels: dict[str, str] = {}
    for defense, members in by(rows, lambda row: row.defense).items():
        keys = sorted({key for row in members for key in row.settings})
        varying = [key for key in keys if len({canonical(row.settings.get(key)) for row in members}) > 1]
        for row in members:
            given = [key for key in varying if row.settings.get(key) is not None]
            told = ", ".join(f"{key} {text_of(row.settings[key])}" for key in given) or "defaults"
            labels[row.id] = defense_name(defense) + (f" ({told})" if varying else "")
    return labels


def ordered(rows: Iterable[Row], labels: Mapping[str, str]) -> list[str]:
    """The variants among ``rows`` as the paper's columns stand: no defense first, I-BAU last."""
    places = {name: place for place, name in enumerate(COLUMN_ORDER)} | {"ibau": len(COLUMN_ORDER) + 1}
    found = {(places.get(row.defense, len(COLUMN_ORDER)), labels[row.id]) for row in rows}
    return [label for _, label in sorted(found)]


def estimate(rows: Sequence[Row], metric: str) -> Estimate | None:
    """The metric's mean over repetitions. Of several: Student's t interval, cut to [0, 1] for rates.

    Nowhere narrower than the records' own on average: repetitions share many of their scoring images, and the image
    part of their spread does not shrink with their number.
    """
    told = [row for row in rows if metric in row.figures]
    values = [row.figures[metric] for row in told]
    if not values:
        return None
    mean = sum(values) / len(values)
    if len(values) == 1:
        low, high = told[0].intervals.get(metric, (None, None))
    else:
        half = _half_width(values, mean)
        low, high = mean - half, mean + half
        own = [row.intervals[metric] for row in told if metric in row.intervals]
        if len(own) == len(told):
            low = min(low, math.fsum(least for least, _ in own) / len(own))
            high = max(high, math.fsum(most for _, most in own) / len(own))
        if metric in RATES or metric.startswith(EVASION):
            low, high = max(0.0, low), min(1.0, high)
    return Estimate(mean, low, high, len(values), min(values), max(values), len({row.seed for row in told}))


def repetitions(found: Iterable[Estimate]) -> str:
    """What means are over, by what differs: ``seeds``, ``runs on one victim`` or, of both, ``repetitions``."""
    several = [each for each in found if each.count > 1]
    if all(each.seeds == each.count for each in several):
        return "seeds"
    return "runs on one victim" if all(each.seeds == 1 for each in several) else "repetitions"


def _half_width(values: Sequence[float], mean: float) -> float:
    count = len(values)
    try:
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    except OverflowError:  # of what somebody else's record may hold
        return math.inf
    quantile = _T95[count - 2] if count - 2 < len(_T95) else 1.96 + 2.5 / (count - 1)
    return quantile * deviation / math.sqrt(count)
