"""The sweep under Ray Tune: each job is a trial, trials reuse their actors, the driver writes every record."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import ray
import torch
from pydantic import ValidationError
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher

from adapters.errors import printable
from bench import cluster
from bench.cluster import CutOffError, Grant
from bench.jobs import Job, JobQueue
from bench.ledger import Ledger
from bench.memory import keep_freed_pages
from bench.outbox import Outbox
from bench.provenance import Commit
from bench.records import Record, RecordStore, first_fault
from bench.run_cell import CellRunner
from bench.worker import Worker

Portable = Callable[[Record], Record]

COUNT_SECONDS = 5.0
"""How often the workers that there are are counted."""
PLACE_SECONDS = 10.0
"""How long a new worker has to say where it is."""
RETRIES = 1
"""How often a job whose worker died is started again before it counts as failed."""
NODE_DEATHS = 3
"""How often besides, where a worker died with its machine."""


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker needs to know. Paths are absolute and the same on every machine of a cluster."""

    data_root: Path
    cache_dir: Path
    threads: int
    commit: Commit


class Listener(Protocol):
    """What watches a sweep go by (``bench.progress``)."""

    def started(self, job: Job) -> None: ...

    def finished(self, job: Job, status: str, seconds: float, reason: str | None = None) -> None: ...

    def tick(self) -> None: ...


class CellTrainable(tune.Trainable):  # type: ignore[misc]
    """A worker: one step does one job. A reset is a new job; data, scorers and victims at hand stay."""

    settings: ClassVar[WorkerSettings]

    def setup(self, config: dict[str, Any]) -> None:
        settings = self.settings
        torch.set_num_threads(settings.threads)
        keep_freed_pages()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._worker = Worker(CellRunner(settings.data_root, settings.cache_dir, device, settings.commit))
        self._job = config
        gc.freeze()  # on a GPU each cell collects garbage first: looking at all that was imported takes 0.3 s

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._job = new_config
        return True

    def step(self) -> dict[str, Any]:
        return {"done": True, **self._worker.do(self._job)}

    def place(self) -> str:
        """The machine and the device that this worker computes on: what its cells may have to share."""
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "all") if torch.cuda.is_available() else "cpu"
        return f"{ray.get_runtime_context().get_node_id()} {device}"


def _with_settings(settings: WorkerSettings) -> type[CellTrainable]:
    """``CellTrainable`` with its settings, which ``tune.with_parameters`` would put into Ray's object store.

    Ray ends a process at once that has something there when its node dies, before it can say what became of its cells.
    """

    class Configured(CellTrainable):  # local, so that it is sent by value
        pass

    Configured.settings = settings
    return Configured


class _NotPickled:
    """Tune pickles what it is given, so that it could go on after a crash. We go on from our records instead."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class QueueSearcher(_NotPickled, Searcher):  # type: ignore[misc]
    """Hands the queue's jobs to Tune as its "suggestions"."""

    def __init__(self, queue: JobQueue, limit: int | None, outbox: Outbox) -> None:
        super().__init__()
        self.queue, self.jobs, self._limit, self._outbox = queue, dict[str, Job](), limit, outbox

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._outbox.flush()
        if self._outbox.blocked and not self._outbox.exhausted:  # what is computed now could not be kept
            return None
        if self.queue.finished() or self._outbox.exhausted:
            return str(Searcher.FINISHED)
        if self._limit is not None and len(self.jobs) >= self._limit:
            return None
        job = self.queue.next()
        if job is None:
            return None
        self.jobs[trial_id] = job
        return {"kind": job.kind, "cell": job.cell.model_dump_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        return None


class Recorder(_NotPickled, tune.Callback):  # type: ignore[misc]
    """Writes each record the moment its trial reports, and keeps queue, ledger and listener up to date."""

    def __init__(
        self, searcher: QueueSearcher, outbox: Outbox, portable: Portable, listener: Listener, ledger: Ledger,
        workers: Callable[[], int] = lambda: 1,
    ) -> None:  # fmt: skip
        self._searcher, self._queue, self._outbox = searcher, searcher.queue, outbox
        self._portable, self._listener = portable, listener
        self.ledger, self._workers, self._counted = ledger, workers, time.monotonic()
        ledger.offer(workers())
        self._places: dict[Any, str] = {}
        """Of each worker that was asked."""
        self._at: dict[str, str] = {}
        """Where the trials that run do."""
        self._deaths: dict[str, list[str]] = {}
        """By job: the machines on which its workers died, empty where that is not known."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        job = self._searcher.jobs.get(trial.trial_id)
        if job is not None:
            self.ledger.first_start = self.ledger.first_start or time.monotonic()
            place = self._at[trial.trial_id] = self._place(trial)
            self._queue.started(job, place)
            self._listener.started(job)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        job = self._searcher.jobs.pop(trial.trial_id, None)
        self._at.pop(trial.trial_id, None)
        if job is None:
            return
        seconds = self.ledger.add(result)
        if "error" in result:
            self._fail(job, result["error"], seconds)
            return
        status, why = "ready", None
        if job.kind == "cell":
            try:
                record = Record.model_validate_json(result["record"])
            except ValidationError as error:  # a plug-in's details may hold what no check foresaw
                self._fail(job, printable(f"its record cannot be read: {first_fault(error)}"), seconds)
                return
            status, why = record.status, record.reason
            self._write(job, record)
        known = status in ("ready", "ok", "no_trigger_detected", "diverged", "timeout")
        self._queue.finish(job, seconds if known else None)
        self._done(job, status, seconds, why)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        job, place = self._searcher.jobs.pop(trial.trial_id, None), self._at.pop(trial.trial_id, "")
        if job is None:
            return
        if cluster.is_cut_off():  # it died with the node
            raise CutOffError
        machines = self._deaths.setdefault(job.key, [])
        machines.append(place.partition(" ")[0])
        if _may_go_on(machines):
            self._queue.again(job)
        else:
            self._fail(job, f"its worker died {len(machines)} times, the last time because: {_cause(trial)}", 0.0)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._outbox.flush()
        if time.monotonic() > self._counted + COUNT_SECONDS:
            if cluster.is_cut_off():
                raise CutOffError
            with suppress(RayError):  # the cluster's head does not answer just now
                self.ledger.offer(self._workers())
            self._counted = time.monotonic()
        self._listener.tick()

    def _place(self, trial: Any) -> str:
        """Where the worker of ``trial`` computes, which each is asked once; empty for one that does not say."""
        worker: Any = getattr(getattr(trial, "temporary_state", None), "ray_actor", None)
        name = getattr(worker, "_actor_id", None)
        if name is None:
            return ""
        if name not in self._places:
            try:
                self._places[name] = str(ray.get(worker.place.remote(), timeout=PLACE_SECONDS))
            except RayError:  # it died, or is busy with something else
                self._places[name] = ""
        return self._places[name]

    def _fail(self, job: Job, why: str, seconds: float) -> None:
        """A record for the cell, or for every cell of the victim."""
        if job.kind == "victim":
            lost = self._queue.fail_victim(job)
            self._done(job, "failed", seconds, why)
            why = f"its victim could not be prepared: {why}"
        else:
            lost = [job]
            self._queue.finish(job, None)
        for one in lost:
            self._write(one, Record(id=one.key, cell=one.cell, status="failed", reason=why))
            self._done(one, "failed", seconds, why if one is job else None)

    def _write(self, job: Job, record: Record) -> None:
        if record.provenance is not None:
            beside = {"cells_beside": self._queue.company.most(job.key)}
            record = record.model_copy(update={"provenance": record.provenance.model_copy(update=beside)})
        self._outbox.put(self._portable(record))

    def _done(self, job: Job, status: str, seconds: float, reason: str | None = None) -> None:
        self.ledger.last_end = time.monotonic()
        if job.kind == "cell":
            self.ledger.statuses[status] = self.ledger.statuses.get(status, 0) + 1
        self._listener.finished(job, status, seconds, reason)


def run_sweep(
    queue: JobQueue,
    grant: Grant,
    settings: WorkerSettings,
    store: RecordStore,
    portable: Portable,
    listener: Listener,
    ledger: Ledger,
    limit: int | None = None,
    workers: Callable[[], int] | None = None,
) -> None:
    """Run every job of ``queue`` on the Ray that is up; when this returns, each of its cells has its record.

    Where the disk takes no record, nothing new is started until it does; raises ``NoRoomError`` if it does not in time,
    and ``CutOffError`` where this process lost its Ray.

    Args:
        portable: gives a record the paths it is stored with.
        ledger: what the workers did is entered here, whatever the end.
        limit: the most trials at once, where the cluster has room for more.
        workers: how many workers there are now; by default as many as were granted.
    """
    # Tune would otherwise start one worker after the other, and keep only one idle worker for the next job.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(grant.workers)
    outbox = Outbox(store)
    searcher = QueueSearcher(queue, limit, outbox)
    recorder = Recorder(searcher, outbox, portable, listener, ledger, workers or (lambda: grant.workers))
    scratch = store.folder / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)
    trainable = tune.with_resources(_with_settings(settings), {"cpu": grant.cpu, "gpu": grant.gpu})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[recorder],
            # A trial has nothing to save; the save that is Tune's default would fail, and take the worker with it.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=0),  # the queue hands a lost job out again
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        outbox.close()


def _may_go_on(machines: Sequence[str]) -> bool:
    """Whether a job is started again whose workers died on ``machines``.

    Ray's error does not tell a worker's death from its machine's, and Ray takes half a minute to believe in the latter.
    So the last death counts as the worker's own, and earlier ones as their machines' where these are dead by now.
    """
    dead = cluster.dead_nodes()
    own = sum(one not in dead for one in machines)
    return own <= RETRIES and len(machines) - own <= NODE_DEATHS


def _cause(trial: Any) -> str:
    """The last line of what Ray wrote of a trial's end: the exception, or how the process died."""
    try:
        lines = Path(trial.error_file).read_text(errors="replace").strip().splitlines()
    except (OSError, TypeError):
        lines = []
    return " ".join(lines[-1].split())[:400] if lines else "unknown"


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)
