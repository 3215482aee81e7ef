"""How much the ASR that a defense leaves varies with the poison ratio."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from bench.report import names
from bench.report.groups import by, estimate
from bench.report.rows import Row

AXIS = "poison_ratio"
Place = tuple[str, float | None]
"""A victim, but for its seed and poison ratio, and the ratio."""


def places(rows: Sequence[Row]) -> dict[Place, list[Row]]:
    return by(rows, lambda row: (row.victim_but(AXIS), row.poison_ratio))


def widest(own: Mapping[Place, Sequence[Row]], shared: Collection[Place]) -> float | None:
    """By how much ASR varies with the ratio at most, over the ``shared`` places; None where no victim has two."""
    told = [place for place in own if place in shared and with_asr(own[place])]
    alike = by(told, lambda place: place[0]).values()
    asrs = [[_asr(own[place]) for place in each] for each in alike if len(each) > 1]
    return max((max(each) - min(each) for each in asrs), default=None)


def spans(own: Mapping[Place, Sequence[Row]], theirs: Mapping[Place, Sequence[Row]]) -> tuple[float, float] | None:
    """Ours and theirs, over the places that both have; None where no victim has two of these."""
    ours, other = widest(own, theirs.keys()), widest(theirs, own.keys())
    return None if ours is None or other is None else (ours, other)


def variation(name: str, both: tuple[float, float], ours: tuple[str, float], broken: bool) -> str:
    """``TABOR 80.4 points``; over other ratios than I-BAU as a whole, with what I-BAU does there."""
    there = f" (there {ours[0]} {names.points(both[0])})" if both[0] != ours[1] else ""
    return f"{name} {names.points(both[1])}{there}{' and diverged or ran out of time at some' if broken else ''}"


def with_asr(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "asr" in row.figures]


def _asr(rows: Sequence[Row]) -> float:
    found = estimate(rows, "asr")
    assert found is not None
    return found.mean
