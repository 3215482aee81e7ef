"""Progress of a sweep: a live display on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adapters.errors import printable
from bench.cells import Cell
from bench.jobs import Job, JobQueue
from bench.titles import describe

LINE_SECONDS = 10.0
"""At most one line in this time where there is no terminal, but for failures."""
REASON_LETTERS = 300
"""How much of a reason is printed; the record has more."""
SHOWN = 16
"""Running jobs named at once."""


def duration(seconds: float) -> str:
    """42 s, 3:07 or 1:02:09."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Watches a queue. ``total`` counts all cells of the sweep, ``later`` those that come after the queue's.

    ``epochs``: (epochs done, epochs) of the victim of a cell in training, as far as is known. ``titles``: what victims
    are called, by their ids, where ``describe`` does not tell them apart.
    """

    def __init__(
        self, console: Console, queue: JobQueue, total: int, later: int, workers: int,
        epochs: Callable[[Cell], tuple[int, int] | None] = lambda cell: None,
        titles: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._console, self._queue, self._workers, self._epochs = console, queue, workers, epochs
        self._titles = titles or {}
        self._total, self._later = total, later
        self._start = time.monotonic()
        self._since: dict[str, tuple[Job, float]] = {}
        self._failed = 0
        self._last_line = 0.0
        self._live = Live(console=console, refresh_per_second=2, transient=True, get_renderable=self._render)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def started(self, job: Job) -> None:
        self._since[job.key] = (job, time.monotonic())
        self._line()

    def finished(self, job: Job, status: str, seconds: float, reason: str | None = None) -> None:
        self._since.pop(job.key, None)
        if status in ("failed", "attack_failed", "diverged"):
            self._failed += status == "failed" and job.kind == "cell"
            why = f" ({textwrap.shorten(printable(reason), REASON_LETTERS, placeholder='…')})" if reason else ""
            self._console.print(f"  {status}: {self._title(job)}{why}", highlight=False, markup=False, soft_wrap=True)
        self._line()

    def tick(self) -> None:
        self._line()

    def _line(self) -> None:
        now = time.monotonic()
        if self._console.is_terminal or now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        running = "; ".join(self._told(job) for job, _ in list(self._since.values())[:SHOWN]) or "starting"
        self._console.print(f"{self._counts()} | {running}", highlight=False, markup=False, soft_wrap=True)

    def _told(self, job: Job) -> str:
        known = self._epochs(job.cell) if job.kind == "victim" else None
        return f"{self._title(job)}, {known[0]} of {known[1]} epochs" if known else self._title(job)

    def _title(self, job: Job) -> str:
        return self._titles.get(job.key) or describe(job)

    def _counts(self) -> str:
        left = self._queue.cells_left + self._later
        done = self._total - left
        victims = f", {self._queue.victims_left} victims to prepare" if self._queue.victims_left else ""
        failed = f", {self._failed} failed" if self._failed else ""
        elapsed = duration(time.monotonic() - self._start)
        return f"{done}/{self._total} cells done, {left} left{victims}{failed} | {elapsed} so far, {self._eta()}"

    def _eta(self) -> str:
        seconds = self._queue.seconds_left(self._workers)
        after = f" before {self._later} run alone" if self._later else ""
        return f"time left{after} not known yet" if seconds is None else f"about {duration(seconds)} left{after}"

    def _render(self) -> Group:
        done = self._total - self._queue.cells_left - self._later
        rows = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for job, since in list(self._since.values())[:SHOWN]:
            rows.add_row("▸", Text(self._told(job)), duration(now - since))
        if len(self._since) > SHOWN:
            rows.add_row("", f"and {len(self._since) - SHOWN} more", "")
        if not self._since:
            rows.add_row("", Text("workers are starting", style="dim"), "")
        return Group(ProgressBar(self._total, done, width=60), Text(self._counts()), rows)
