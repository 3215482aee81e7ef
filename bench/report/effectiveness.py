"""In which settings a defense is effective, and how far its ASR ranges over runs: what verdicts are made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bench.report import marks, ratios
from bench.report.groups import by, estimate
from bench.report.rows import Row

Setting = tuple[str, float | None]
"""A victim, but for its seed, and n."""
RUNS = 3
"""Fewer show no range."""


def in_settings(rows: Sequence[Row]) -> dict[Setting, list[Row]]:
    """The repetitions of each victim and n."""
    return by(rows, lambda row: (row.victim_key, row.clean_size))


def outcomes(rows: Sequence[Row], among: Collection[Setting] | None = None) -> dict[Setting, bool]:
    """Whether the defense is effective in each setting, or in each of those that are ``among``."""
    return {key: effective(each) for key, each in in_settings(rows).items() if among is None or key in among}


def count(rows: Sequence[Row]) -> tuple[int, int]:
    """In how many settings the defense is effective, of how many."""
    found = outcomes(rows)
    return sum(found.values()), len(found)


def effective(rows: Sequence[Row]) -> bool:
    """Whether the means of repetitions in one setting are; no repetition diverged or ran out of time."""
    if not all(row.scored for row in rows):
        return False
    acc, asr = estimate(rows, "acc"), estimate(rows, "asr")
    assert acc is not None
    assert asr is not None
    before = [row.before["acc"] for row in rows if "acc" in row.before]
    return marks.Outcome(rows[0].defense, acc.mean, asr.mean, sum(before) / len(before) if before else None).effective


def effective_runs(rows: Sequence[Row], among: Collection[Setting]) -> str:
    """``5 of 6`` of the runs in these settings, each judged by itself."""
    runs = [row for key, each in in_settings(rows).items() if key in among for row in each]
    return f"{sum(effective([row]) for row in runs)} of {len(runs)}"


def spans(rows: Sequence[Row]) -> dict[Setting, float]:
    """The range of ASR in each setting with enough runs."""
    return {key: _span(each) for key, each in in_settings(ratios.with_asr(rows)).items() if len(each) >= RUNS}


def _span(rows: Sequence[Row]) -> float:
    values = [row.figures["asr"] for row in rows]
    return max(values) - min(values)
