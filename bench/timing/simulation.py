"""A sweep whose workers are made up and whose driver is real: its queue, its records, its store; no Ray, no models.

The workers live on a simulated clock, which jumps from the end of one job to that of the next. What the driver does
at each is what ``bench.engine`` does, and takes real seconds, which no simulated clock knows of.
"""

from __future__ import annotations

import heapq
import io
import json
import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import yaml
from rich.console import Console

from bench import spec
from bench.clock import Stopwatch
from bench.engine import QueueSearcher, Recorder
from bench.jobs import Job, JobQueue
from bench.ledger import Ledger
from bench.outbox import Outbox
from bench.progress import Progress
from bench.records import Record, RecordStore
from bench.report.driver import DriverRun
from bench.seeds import derive_seed
from bench.session import portable_record
from bench.spec import SweepPlan
from bench.timing.scale import made_record

GRID: dict[str, list[Any]] = {
    "dataset": ["cifar10", "gtsrb"],
    "poison_ratio": [0.05, 0.1, 0.2],
    "clean_size": [500, 2500, 5000],
    "defense": ["none", "fine_tuning", "ibau", "neural_cleanse", "deep_inspect", "tabor", "fine_pruning", "nad"],
}
"""The paper's in kind; a hundred and forty-four cells a repetition, of forty-eight families, on six victims."""


def plan(cells: int, folder: Path) -> SweepPlan:
    """A plan of so many cells, by way of a sweep file in ``folder``, where no images need be: nothing is run."""
    seeds = math.ceil(cells / math.prod(map(len, GRID.values())))
    cell = {"model": "simplified_vgg", "attack": "badnets", "target": 3}
    path = folder / "driver.yaml"
    path.write_text(yaml.safe_dump({"name": "driver", "cell": cell, "grid": GRID, "seeds": seeds}, sort_keys=False))
    made = spec.load(path, (), folder)
    by_seed = sorted(made.cells, key=lambda one: one.seed)
    return replace(made, cells=tuple(by_seed[:cells]))


@dataclass(frozen=True)
class Lengths:
    """Simulated seconds of jobs: log-normal of this mean, ``spread`` the deviation of their logarithms, in [0, ∞).

    Each is a pure function of ``seed`` and its job, and so the same for any number of workers.
    """

    mean: float
    spread: float
    seed: int

    def of(self, job: Job) -> float:
        draw = random.Random(derive_seed("simulated length", self.seed, job.kind, job.key)).gauss(0.0, 1.0)
        return self.mean * math.exp(self.spread * draw - self.spread**2 / 2)


class Span(NamedTuple):
    """A job on the simulated clock."""

    job: Job
    start: float
    end: float


class _TimedStore(RecordStore):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.watch = Stopwatch()

    def append(self, record: Record) -> None:
        with self.watch:
            super().append(record)


class Simulation:
    """One sweep of ``plan``, no victim of which is there, with its records in ``folder``.

    ``spans``: the jobs in the order they ended; they depend on ``plan``, ``workers`` and ``lengths`` alone.
    """

    def __init__(self, plan: SweepPlan, workers: int, lengths: Lengths, folder: Path) -> None:
        self._workers, self._lengths, self._cells = workers, lengths, len(plan.cells)
        self._store = _TimedStore(folder)
        self._outbox = Outbox(self._store)
        queue = JobQueue(plan.cells, lambda cell: False, {})
        listener = Progress(Console(file=io.StringIO()), queue, self._cells, 0, workers)
        self._searcher = QueueSearcher(queue, None, self._outbox)
        self._recorder = Recorder(
            self._searcher, self._outbox, lambda record: portable_record(record, plan.folders), listener, Ledger(),
            lambda: workers,
        )  # fmt: skip
        self._pick, self._start, self._report = Stopwatch(), Stopwatch(), Stopwatch()
        self._victims = queue.victims_left
        self.spans: list[Span] = []

    def run(self) -> DriverRun:
        now, at_work, count = 0.0, list[tuple[float, int, Any, Span]](), 0
        driver: list[float] = []
        while True:
            while len(at_work) < self._workers:
                trial = SimpleNamespace(trial_id=f"{count:08}")
                job = self._hand_out(trial)
                if job is None:
                    break
                span = Span(job, now, now + self._lengths.of(job))
                heapq.heappush(at_work, (span.end, count, trial, span))
                count += 1
            if not at_work:
                break
            now, _, trial, span = heapq.heappop(at_work)
            self._end(trial, span)
            self.spans.append(span)
            driver.append(self._pick.seconds + self._start.seconds + self._report.seconds)
        self._outbox.close()
        return self._found(now, driver)

    def _hand_out(self, trial: Any) -> Job | None:
        with self._pick:
            self._searcher.suggest(trial.trial_id)
        job = self._searcher.jobs.get(trial.trial_id)
        if job is not None:
            with self._start:
                self._recorder.on_trial_start(0, [], trial)
        return job

    def _end(self, trial: Any, span: Span) -> None:
        """The worker says what came of its job, as ``bench.worker`` words it, and the driver takes it in."""
        seconds = span.end - span.start
        result: dict[str, Any] = {"seconds": seconds, "work": seconds, "gap": 0.0}
        if span.job.kind == "cell":
            result["record"] = made_record(span.job.cell, seconds).line().decode()
        with self._report:
            self._recorder.on_trial_result(0, [], trial, result)
            self._recorder.on_step_end(0, [])

    def _found(self, makespan: float, driver: list[float]) -> DriverRun:
        lines = self._lines()
        tenth = max(1, len(driver) // 10)
        return DriverRun(
            workers=self._workers,
            cells=self._cells,
            victims=self._victims,
            work=math.fsum(span.end - span.start for span in self.spans),
            makespan=makespan,
            pick=self._pick.seconds,
            start=self._start.seconds,
            report=self._report.seconds - self._store.watch.seconds,
            store=self._store.watch.seconds,
            first=driver[tenth - 1] / tenth,
            last=(driver[-1] - driver[-1 - tenth]) / tenth if len(driver) > tenth else driver[-1] / tenth,
            lost=self._cells - len(lines),
            doubled=sum(count > 1 for count in lines.values()),
        )

    def _lines(self) -> Counter[str]:
        """How many lines of the store each cell has."""
        with self._store.path.open("rb") as file:
            return Counter(json.loads(line)["id"] for line in file)
