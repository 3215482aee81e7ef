"""``Ledger``: what the workers of a sweep did with their time, and what it cost them besides."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """What the workers did, in seconds over all workers.

    ``busy``: inside jobs. ``work``: of these, training victims and defending, which leaves out imports, loading and
    scoring. ``first_start`` and ``last_end`` are ``time.monotonic()``. ``gaps``: from the end of a worker's job to the
    start of its next one, each; waiting for a victim that another worker trains is among them, a worker's start is not.
    ``besides``: of each scored cell, what was neither defending nor scoring.
    """

    busy: float = 0.0
    work: float = 0.0
    first_start: float | None = None
    last_end: float | None = None
    statuses: dict[str, int] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    besides: list[float] = field(default_factory=list)

    def add(self, result: Mapping[str, Any]) -> float:
        """Enter what a worker reports of a job (``bench.worker``); returns the job's seconds."""
        seconds = float(result["seconds"])
        self.busy += seconds
        self.work += float(result.get("work", 0.0))
        for name, kept in (("gap", self.gaps), ("besides", self.besides)):
            if result.get(name) is not None:
                kept.append(float(result[name]))
        return seconds

    @property
    def wall(self) -> float:
        """Seconds from the first start to the last end."""
        return 0.0 if self.first_start is None or self.last_end is None else self.last_end - self.first_start

    def shares(self, workers: int) -> tuple[float, float] | None:
        """``busy`` and ``work`` as shares of what ``workers`` had between the first start and the last end."""
        total = workers * self.wall
        if total <= 0:
            return None
        return min(1.0, self.busy / total), min(1.0, self.work / total)

    def overhead(self) -> str:
        """A line on ``gaps`` and ``besides``, the median and the worst of each; empty where neither is known."""
        known = (
            ("from a worker's job to its next", self.gaps),
            ("inside a cell neither defending nor scoring", self.besides),
        )
        parts = [f"{_middle_and_worst(each)} {what}" for what, each in known if each]
        return f"overhead, median (worst): {', '.join(parts)}" if parts else ""


def _middle_and_worst(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({max(seconds):.2f} s)"
