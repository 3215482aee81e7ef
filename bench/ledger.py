"""``Ledger``: what the workers of a sweep did with their time, and what it cost them besides."""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.files import write_atomically

logger = logging.getLogger(__name__)

FILE = "ledger.json"
SCHEMA = 1


@dataclass
class Ledger:
    """What the workers of one run of a sweep did, in seconds over all workers.

    ``busy``: inside jobs. ``work``: of these, training victims, the fitting of their triggers included, and defending,
    which leaves out imports, loading and scoring. ``first_start`` and ``last_end`` are ``time.monotonic()``. ``gaps``:
    from the end of a worker's job to the start of its next one, each; waiting for a victim that another worker trains
    is among them, a worker's start is not. ``besides``: of each scored cell, what was neither defending nor scoring.
    ``offers``: since when there were how many workers. A job that an interrupt cut off is not in it.
    """

    busy: float = 0.0
    work: float = 0.0
    first_start: float | None = None
    last_end: float | None = None
    statuses: dict[str, int] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    besides: list[float] = field(default_factory=list)
    offers: list[tuple[float, int]] = field(default_factory=list)

    def offer(self, workers: int) -> None:
        """There are so many workers from now on."""
        if not self.offers or self.offers[-1][1] != workers:
            self.offers.append((time.monotonic(), workers))

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

    @property
    def offered(self) -> float:
        """Seconds that the workers there were had, in all, between the first start and the last end."""
        if self.first_start is None or self.last_end is None:
            return 0.0
        ends = [*(at for at, _ in self.offers[1:]), math.inf]
        spans = [
            (workers, min(end, self.last_end) - max(at, self.first_start))
            for (at, workers), end in zip(self.offers, ends, strict=False)
        ]
        return math.fsum(workers * max(0.0, span) for workers, span in spans)

    def shares(self) -> tuple[float, float] | None:
        """``busy`` and ``work`` as shares of what was offered."""
        total = self.offered
        if total <= 0:
            return None
        return min(1.0, self.busy / total), min(1.0, self.work / total)

    def entry(self, *, finished: bool) -> dict[str, Any]:
        """The run as ``ledger.json`` has it; ``finished``: whether every cell it was to compute has its record."""
        return {
            "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "finished": finished,
            "statuses": self.statuses,
            "seconds": self.wall,
            "offered_seconds": self.offered,
            "busy_seconds": self.busy,
            "work_seconds": self.work,
            "workers": [[max(0.0, at - (self.first_start or at)), workers] for at, workers in self.offers],
            "gap_seconds": _summary(self.gaps),
            "besides_seconds": _summary(self.besides),
        }

    def overhead(self) -> str:
        """A line on ``gaps`` and ``besides``, the median and the worst of each; empty where neither is known."""
        known = (
            ("from a worker's job to its next", self.gaps),
            ("inside a cell neither defending nor scoring", self.besides),
        )
        parts = [f"{_middle_and_worst(each)} {what}" for what, each in known if each]
        return f"overhead, median (worst): {', '.join(parts)}" if parts else ""


def keep(folder: Path, entry: Mapping[str, Any]) -> None:
    """Add ``entry`` to the runs in ``folder``'s ledger; a file that is none is put aside."""
    path = folder / FILE
    runs: list[Any] = []
    try:
        runs = list(json.loads(path.read_bytes())["runs"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, RecursionError):
        path.replace(path.with_name(f"{FILE}.damaged"))
        logger.warning("%s: no ledger of this program; moved to %s.damaged", path, FILE)
    write_atomically(path, (json.dumps({"schema": SCHEMA, "runs": [*runs, entry]}, indent=1) + "\n").encode())


def _summary(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {"count": len(seconds), "median": statistics.median(seconds), "worst": max(seconds)}


def _middle_and_worst(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({max(seconds):.2f} s)"
