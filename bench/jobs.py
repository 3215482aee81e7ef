"""Which job runs next: victims first, the costly ones before the cheap, and cells as soon as their victim is there.

Knows nothing of Ray: a queue that is asked for a job and told what became of it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from bench.cells import Cell
from bench.company import Company
from bench.durations import CONTROL, Durations, Family


@dataclass(frozen=True)
class Job:
    """A victim to prepare, or a cell to run. ``cell`` of a victim job is any of the victim's cells."""

    kind: Literal["victim", "cell"]
    cell: Cell
    key: str
    """The victim's id or the cell's id."""
    victim: str

    @cached_property
    def family(self) -> Family:
        return family_of(self.kind, self.cell)


def family_of(kind: Literal["victim", "cell"], cell: Cell) -> Family:
    """Jobs of one family are expected to cost the same."""
    size = cell.training if kind == "victim" else (cell.clean_size, str(cell.defense))
    control = kind == "cell" and cell.defense["name"] == "none"
    return Family(CONTROL if control else kind, f"{cell.dataset} {cell.model} {size}")


class JobQueue:
    """Hands out jobs. Every cell given ends in ``finish``, by itself or through its victim's failure.

    Args:
        cells: the cells to run, distinct.
        ready: whether a victim needs no preparation.
        costs: victims' relative costs; the largest goes first.
        clean: the clean model, as a cell, that must be trained before the victim of a cell, or before its cells where
            that needs no preparation (a checkpoint with a fitted trigger); None if it needs none. It is a victim job of
            its own, the first of all, lest many workers wait for the one that trains it.
        ahead: cells of which only the victims are prepared. One that fails is nobody's end: its cells are not here.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        ready: Callable[[Cell], bool],
        costs: Mapping[str, float],
        clean: Callable[[Cell], Cell | None] = lambda cell: None,
        ahead: Iterable[Cell] = (),
    ) -> None:
        self.durations = Durations()
        self.running: dict[str, Job] = {}
        self.company = Company()
        self._order = itertools.count()
        self._families: dict[Family, list[tuple[int, Job]]] = defaultdict(list)
        self._waiting: dict[str, list[Job]] = defaultdict(list)
        self._victims: list[tuple[float, int, Job]] = []
        self._blocked: dict[str, list[Job]] = {}
        """Victims by the id of the clean model they wait for."""
        self._at_hand: set[str] = set()
        """Victims that need no preparation, but for that."""
        self._again: list[Job] = []
        self._costs = costs
        self._unfinished: Counter[Family] = Counter()
        self.cells_left = 0
        """Cells not finished, the running ones among them."""
        self.victims_left = 0
        for cell in cells:
            victim = cell.victim_id
            job = Job("cell", cell, cell.id, victim)
            self._waiting[victim].append(job)
            self._unfinished[job.family] += 1
            self.cells_left += 1
        alone = {cell.victim_id: cell for cell in ahead if cell.victim_id not in self._waiting}
        self._own = frozenset({*self._waiting, *alone})
        """Victims of cells, as against clean models that only a trigger is fitted to."""
        for victim, cell in [*((name, jobs[0].cell) for name, jobs in self._waiting.items()), *alone.items()]:
            if ready(cell):
                self._at_hand.add(victim)
            self._add_victim(Job("victim", cell, victim, victim), clean(cell))

    def recall(self, seconds: Iterable[tuple[Cell, float]]) -> None:
        """What cells of an earlier run took, for a first idea of what those of their families will.

        Seconds of the defense alone will do: scoring makes little of a long cell, and short ones matter little.
        """
        for cell, took in seconds:
            self.durations.add(family_of("cell", cell), took)

    def next(self) -> Job | None:
        """A job to start now, or None: there is none, or all that are left wait for a victim."""
        if self._again:
            return self._again.pop()
        return heapq.heappop(self._victims)[2] if self._victims else self._longest()

    def started(self, job: Job, place: str = "") -> None:
        """``place``: where it runs, in the sense of ``Company``."""
        self.running[job.key] = job
        self.company.started(job.key, place)

    def again(self, job: Job) -> None:
        """``job`` was lost with its worker, and is handed out before any other."""
        self.running.pop(job.key, None)
        self.company.ended(job.key)
        self._again.append(job)

    def finish(self, job: Job, seconds: float | None) -> None:
        """``job`` is done; ``seconds`` it took, if that says anything of the next one of its family."""
        self._end(job)
        if seconds is not None:
            self.durations.add(job.family, seconds)
        if job.kind == "victim":
            self._release(job.victim)
            for one in self._blocked.pop(job.victim, []):
                self._unblock(one)

    def fail_victim(self, job: Job) -> list[Job]:
        """The victim cannot be prepared; returns its cells, which are finished too, and those of what waits for it."""
        if job.victim not in self._at_hand:
            self._end(job)
        jobs = self._waiting.pop(job.victim, [])
        for one in jobs:
            self._end(one)
        for other in self._blocked.pop(job.victim, []):
            jobs += self.fail_victim(other)
        return jobs

    def finished(self) -> bool:
        return self.cells_left == 0 and self.victims_left == 0

    def seconds_left(self, workers: int) -> float | None:
        """What the remaining jobs will take, from what finished ones took; None while too little is known.

        A family of which none has finished counts like the other cells, or the other victims, on average; cells
        without a defense stand for no others. Running jobs count as half done.
        """
        running = Counter(job.family for job in self.running.values())
        total = 0.0
        for family, left in self._unfinished.items():
            seconds = self.durations.mean(family)
            if left and seconds is None:
                return None
            total += (seconds or 0.0) * (left - running[family] / 2)
        return total / max(1, workers)

    def _add_victim(self, job: Job, clean: Cell | None) -> None:
        if job.victim not in self._at_hand:
            self._unfinished[job.family] += 1
            self.victims_left += 1
        if clean is None:
            self._unblock(job)
            return
        name = clean.victim_id
        if name not in self._blocked:
            self._blocked[name] = []
            if name not in self._own:
                self._add_victim(Job("victim", clean, name, name), None)
        self._blocked[name].append(job)

    def _unblock(self, job: Job) -> None:
        """The victim may be prepared now; if it is there, its cells may run."""
        if job.victim in self._at_hand:
            self._release(job.victim)
            return
        cost = math.inf if job.cell.is_clean else self._costs.get(job.victim, 0.0)
        heapq.heappush(self._victims, (-cost, next(self._order), job))

    def _end(self, job: Job) -> None:
        self.running.pop(job.key, None)
        self.company.ended(job.key)
        self._unfinished[job.family] -= 1
        if job.kind == "victim":
            self.victims_left -= 1
        else:
            self.cells_left -= 1

    def _release(self, victim: str) -> None:
        for job in self._waiting.pop(victim, []):
            heapq.heappush(self._families[job.family], (next(self._order), job))

    def _longest(self) -> Job | None:
        """From the family that takes longest: the short ones at the end even out when the workers stop.

        A family nobody has seen yet comes first, since it may be the longest.
        """
        families = [name for name, jobs in self._families.items() if jobs]
        if not families:
            return None

        def rank(family: Family) -> tuple[float, int]:
            mean = self.durations.mean(family) if self.durations.seen(family) else None
            return (math.inf if mean is None else mean), -self._families[family][0][0]

        best = max(families, key=rank)
        job = heapq.heappop(self._families[best])[1]
        if not self._families[best]:
            del self._families[best]
        return job
