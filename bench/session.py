"""One call of the sweep command, from a plan to its table: what is left to do, doing it, telling of it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from bench import cluster, dry_run, gpu_share, ledger, manifest, preflight
from bench.cells import Cell
from bench.estimate import earlier
from bench.files import check_writable, portable
from bench.jobs import JobQueue
from bench.ledger import Ledger
from bench.mirror import Mirror
from bench.phases import Phase, phases
from bench.progress import Progress, duration
from bench.provenance import commit
from bench.records import Record, RecordStore
from bench.remote import Remote
from bench.spec import SweepPlan
from bench.summary import outcome, table
from bench.termination import interrupted_by_sigterm
from bench.titles import told_apart
from bench.victims import VictimStore

if TYPE_CHECKING:
    from bench.sweep import Options

logger = logging.getLogger(__name__)

CUT_OFF, INTERRUPTED = 1, 130
TABLE_WIDTH = 120
"""Where there is no terminal to fill."""


class Session:
    def __init__(self, options: Options, plan: SweepPlan, folder: Path) -> None:
        self._options, self._plan, self._folder = options, plan, folder
        self._console = Console(soft_wrap=True, highlight=False, markup=False)
        self._store = RecordStore(folder)
        self._mirror: Mirror | None = None
        if options.remote:
            self._mirror = self._store.mirror = Mirror(Remote(f"{options.remote}/{plan.name}"), folder)
        self._earlier: list[Record] = []
        self._retried: set[str] = set()
        """Cells whose failed records are dropped once nothing is left that could refuse the command."""
        self._ledger = Ledger()
        self._start = time.monotonic()

    def run(self) -> int:
        """The exit status."""
        plan, options = self._plan, self._options
        self._say(f"{plan.name}: {plan.combinations} combinations, {len(plan.cells)} distinct cells")
        for part in [part for part in (plan, *plan.parts) if part.reductions]:
            self._say(f"  reduced, {part.name}: {part.reductions}")
        self._pull()
        left = self._left()
        if options.dry_run:
            return self._dry_run(left)
        if not left:
            self._write_manifest()
            self._say(f"nothing to compute: all {len(plan.cells)} cells have their record in {self._store.path}")
            return self._end()
        if options.address:
            cluster.check_address(options.address)
        manifest.read(self._folder)  # one that is none is told now
        preflight.check_names(plan)
        parts = self._phases(left)
        starting = cluster.ClusterStart([one.resources for one in parts], options.address, options.max_concurrent)
        try:
            starting.start()
            checked = preflight.check_data(plan, options.cache)
            grants = starting.wait()
            self._write_manifest()  # not before: a command that is refused is not told of in the report
            if self._retried:
                self._store.drop(self._retried)
            with interrupted_by_sigterm():
                return self._compute(parts, checked, grants)
        except KeyboardInterrupt:
            self._say(f"interrupted with {self._recorded()}; the same command goes on from here")
            return INTERRUPTED
        except cluster.CutOffError:
            print(
                "error: Ray's node on this machine died (a daemon of Ray was killed, as the system does where memory"
                f" runs out) with {self._recorded()}; the same command goes on from here",
                file=sys.stderr,
            )
            return CUT_OFF
        finally:
            starting.stop()

    def _recorded(self) -> str:
        done = len({record.id for record in self._store.read()} & {cell.id for cell in self._plan.cells})
        return f"{done} of {len(self._plan.cells)} cells recorded"

    def _pull(self) -> None:
        """What other machines sent to the remote folder comes here; what this one could not send goes there."""
        if self._mirror is None:
            return
        came = self._mirror.pull(self._store)
        went = 0 if self._options.dry_run else self._mirror.catch_up(self._store)
        self._say(f"{self._mirror.address}: {came} records came from there, {went} went; working in {self._folder}")

    def _write_manifest(self) -> None:
        manifest.write(self._plan, self._folder)
        if self._mirror:
            self._mirror.push_manifest()

    def _left(self) -> list[Cell]:
        """Cells without a record. Failed ones have one, unless they are to be retried: a run then drops it."""
        records = {record.id: record for record in self._store.read(repair=not self._options.dry_run)}
        failed = [cell.id for cell in self._plan.cells if cell.id in records and records[cell.id].status == "failed"]
        if failed and self._options.retry_failed:
            self._retried = set(failed)
            records = {name: record for name, record in records.items() if name not in self._retried}
        elif failed:
            self._say(f"{len(failed)} cells failed in an earlier run; --retry-failed runs them again")
        self._earlier = [records[cell.id] for cell in self._plan.cells if cell.id in records]
        return [cell for cell in self._plan.cells if cell.id not in records]

    def _dry_run(self, left: Sequence[Cell]) -> int:
        preflight.check_names(self._plan)
        checked = preflight.check_data(self._plan, self._options.cache)
        stages, victims = self._phases(left), self._victims_to_train(left, checked)
        for line in dry_run.lines(self._plan, left, stages, victims, checked, self._options):
            self._say(line)
        return 0

    def _phases(self, left: Sequence[Cell]) -> list[Phase]:
        """What runs one after the other, with a number for ``gpu: auto``, which is told."""
        found = []
        for part in phases(self._plan, left):
            resources, line = gpu_share.resolved(
                part.resources,
                part.cells or part.ahead,
                (self._store.read, lambda: earlier(dict.fromkeys((self._options.out, dry_run.COMMITTED)), gpu=True)),
                gpu_share.memory_here(),
            )
            if line and (torch.cuda.is_available() or self._options.address):
                self._say(line)
            found.append(part._replace(resources=resources))
        return found

    def _victims_to_train(self, left: Sequence[Cell], checked: preflight.Checked) -> list[Cell]:
        """One cell for each victim that is not there yet, clean models that a trigger is to be fitted to among them."""
        store, victims = VictimStore(self._options.cache), preflight.distinct_victims(tuple(left))
        missing = [cell for cell in victims if not store.has(cell)]
        # Of a checkpoint's trigger too, and of one that is lost though its victim is not.
        clean = [store.clean_model_to_train(cell, checked.shapes[cell.dataset]) for cell in victims]
        return list({cell.victim_id: cell for cell in [*clean, *missing] if cell is not None}.values())

    def _compute(self, parts: Sequence[Phase], checked: preflight.Checked, grants: Sequence[cluster.Grant]) -> int:
        began, cells = time.monotonic(), sum(len(part.cells) for part in parts)
        later = cells
        try:
            for part, grant in zip(parts, grants, strict=True):
                later -= len(part.cells)
                self._run(part, checked, grant, later)
        finally:  # after an interrupt or on a full disk too
            self._account(cells, cells - len(parts[0].cells), began)
        return self._end()

    def _run(self, part: Phase, checked: preflight.Checked, grant: cluster.Grant, later: int) -> None:
        """Compute the cells of one phase; ``later``: how many those to come have."""
        from bench import engine  # imports Ray Tune

        options, victims = self._options, VictimStore(self._options.cache)
        queue = self._queue(part, checked, victims)
        if queue.finished():
            return
        if queue.victims_left:
            check_writable(options.cache, "--cache")
        settings = engine.WorkerSettings(self._plan.data_root, options.cache, grant.threads, commit())
        after = f", {later} alone after them" if later else ""
        self._say(
            f"{len(part.cells)} cells to compute{after}, {queue.victims_left} victims to train; {self._where(grant)}"
        )
        titles = self._titles(part, checked) if queue.victims_left else {}
        live = (lambda: cluster.live_workers(grant, options.max_concurrent)) if options.address else None
        with Progress(
            self._console, queue, len(self._plan.cells), later, grant.workers, victims.epochs, titles
        ) as progress:
            engine.run_sweep(
                queue, grant, settings, self._store, self._portable, progress, self._ledger,
                options.max_concurrent, live,
            )  # fmt: skip

    def _titles(self, part: Phase, checked: preflight.Checked) -> dict[str, str]:
        """What the victims still to be trained are called, by their ids."""
        victims = self._victims_to_train([*part.cells, *part.ahead], checked)
        return dict(zip((cell.victim_id for cell in victims), told_apart(victims), strict=True))

    def _queue(self, part: Phase, checked: preflight.Checked, victims: VictimStore) -> JobQueue:
        queue = JobQueue(
            part.cells,
            victims.has,
            checked.costs,
            lambda cell: victims.clean_model_to_train(cell, checked.shapes[cell.dataset]),
            part.ahead,
        )
        queue.recall((record.cell, record.seconds) for record in self._earlier if record.seconds is not None)
        return queue

    def _account(self, cells: int, alone: int, began: float) -> None:
        """Tell where the workers' time went, and keep it beside the records; nothing where no job has ended."""
        if self._ledger.last_end is None:
            return
        done = sum(self._ledger.statuses.values())
        shares, busy = self._ledger.shares(), ""
        if shares is not None:
            busy = f"; workers were busy {shares[0]:.0%} of it, {shares[1]:.0%} training and defending"
        told = f"{done}" if done == cells else f"{done} of {cells}"
        apart = f", {alone} of them alone after the others," if alone and done == cells else ""
        self._say(
            f"{told} cells{apart} in {duration(time.monotonic() - began)}, after {duration(began - self._start)} of"
            f" preparation; from the first job to the last {duration(self._ledger.wall)}{busy}"
        )
        if overhead := self._ledger.overhead():
            self._say(overhead)
        try:
            ledger.keep(self._folder, self._ledger.entry(finished=done == cells))
        except OSError as error:
            logger.warning("%s cannot be written to (%s)", self._folder / ledger.FILE, error.strerror or error)

    def _where(self, grant: cluster.Grant) -> str:
        return f"{grant.workers} at a time, {grant.threads} thread(s) each, {grant.note}"

    def _end(self) -> int:
        """Table and report; the status is 1 if a cell of this sweep failed."""
        ids = {cell.id for cell in self._plan.cells}
        records = [record for record in self._store.read() if record.id in ids]
        view = table(records)
        if view.row_count:
            width = None if self._console.is_terminal else TABLE_WIDTH
            Console(highlight=False, width=width).print(view)
        self._say(outcome(records))
        self._build_report()
        self._say(f"records: {self._store.path}")
        self._say(f"report:  {self._folder / 'report.html'}")
        if self._mirror:
            self._mirror.push()
            self._say(f"both are at {self._mirror.address} too")
        return int(any(record.status == "failed" for record in records))

    def _build_report(self) -> None:
        """Make the report, unless there is one of these very records and manifest: its pages bear their times."""
        from bench import report

        sources = {"report.html": self._store.path, "report.md": self._folder / manifest.FILE}
        times = {self._folder / page: source.stat() for page, source in sources.items()}
        # Equal, not later: a clock that was set back would leave an old page newer than what it is made from.
        if all(page.exists() and page.stat().st_mtime_ns == of.st_mtime_ns for page, of in times.items()):
            return
        report.build(self._folder)
        for page, of in times.items():
            os.utime(page, ns=(of.st_atime_ns, of.st_mtime_ns))

    def _portable(self, record: Record) -> Record:
        return portable_record(record, self._plan.folders)

    def _say(self, text: str) -> None:
        self._console.print(text)


def portable_record(record: Record, folders: Sequence[Path]) -> Record:
    """``record`` with its files' paths relative to the data root or the sweep file, so that it fits any machine."""
    tree = record.cell.model_dump()
    _make_portable(tree, folders)
    return record.model_copy(update={"cell": Cell.model_validate(tree)})


def _make_portable(tree: object, folders: Sequence[Path]) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("image", "mask", "checkpoint") and tree.get("digest") and isinstance(value, str):
                tree[key] = portable(value, folders)
            else:
                _make_portable(value, folders)
    elif isinstance(tree, list | tuple):
        for value in tree:
            _make_portable(value, folders)
