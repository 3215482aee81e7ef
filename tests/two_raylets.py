"""A Ray cluster of several raylets on this machine, each in a working directory of its own: run as a program.

``hold FOLDER`` starts two, prints their address and keeps them until standard input ends. ``churn FOLDER`` runs a sweep
of short fake cells on them, adds a third raylet on the way, then kills the second.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fake_cells import cell

from bench import cluster, engine
from bench.cells import Cell
from bench.jobs import Job, JobQueue
from bench.ledger import Ledger
from bench.provenance import Commit, provenance
from bench.records import Record, RecordStore
from bench.spec import Resources

CELLS, ADDED_AFTER, KILLED_AFTER = 60, 6, 24
"""How many fake cells there are; after how many a raylet joins, and another is killed."""
CELL_SECONDS = 0.3
PATIENCE = 240
"""Seconds that cells elsewhere wait, at most, for a raylet's first one, which on a busy machine starts late."""


class Raylets:
    """Each with one CPU, started in ``root/NAME``."""

    def __init__(self, root: Path) -> None:
        from ray.cluster_utils import Cluster

        self._root = root
        with self._inside("head"):
            self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._nodes: dict[str, Any] = {}
        self.address: str = self._cluster.address

    def add(self, name: str) -> None:
        with self._inside(name):
            self._nodes[name] = self._cluster.add_node(num_cpus=1)

    def kill(self, name: str) -> None:
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()

    @contextlib.contextmanager
    def _inside(self, name: str) -> Iterator[None]:
        folder, before = self._root / name, Path.cwd()
        folder.mkdir()
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


class Fake(engine.CellTrainable):  # type: ignore[misc]
    """Takes a moment and leaves a line in ``places``: the working directory of its raylet, and what it did."""

    def setup(self, config: dict[str, Any]) -> None:
        self._job, self._log = config, self.settings.cache_dir / "places"
        self._root = self.settings.cache_dir

    def step(self) -> dict[str, Any]:
        one = Cell.model_validate_json(self._job["cell"])
        time.sleep(CELL_SECONDS)
        end = time.monotonic() + PATIENCE
        while self._awaited() and time.monotonic() < end:
            time.sleep(CELL_SECONDS)
        with self._log.open("a") as file:
            file.write(f"{Path.cwd().name} {one.id}\n")
        source = provenance(torch.device("cpu"), Commit(None, None))
        line = Record(id=one.id, cell=one, status="ok", seconds=CELL_SECONDS, provenance=source).line()
        return {"done": True, "seconds": CELL_SECONDS, "work": CELL_SECONDS, "record": line.decode()}

    def _awaited(self) -> bool:
        """Whether another raylet that was started has done nothing yet."""
        log = self._log.read_text() if self._log.exists() else ""
        others = {"second", "third"} - {Path.cwd().name} - {line.split()[0] for line in log.splitlines()}
        return any((self._root / name).exists() for name in others)


class Churn:
    """Listens to the sweep, and has raylets come and go."""

    def __init__(self, raylets: Raylets) -> None:
        self._raylets, self._done = raylets, 0

    def started(self, job: Job) -> None: ...

    def finished(self, job: Job, status: str, seconds: float, reason: str | None = None) -> None:
        self._done += 1
        if self._done == ADDED_AFTER:
            self._raylets.add("third")
        if self._done == KILLED_AFTER:
            self._raylets.kill("second")

    def tick(self) -> None: ...


def churn(raylets: Raylets, root: Path) -> dict[str, Any]:
    """What the cluster offered, and what the workers did where."""
    (grant,) = cluster.start([Resources(cpu=1, gpu=0)], raylets.address, None)
    engine.CellTrainable = Fake  # type: ignore[misc]
    engine.COUNT_SECONDS = 0.2
    queue = JobQueue([cell("none", clean_size=n) for n in range(1, CELLS + 1)], lambda one: True, {})
    settings = engine.WorkerSettings(root, root, 1, Commit(None, None))
    store = RecordStore(root / "results")
    ledger = Ledger()

    def live() -> int:
        return cluster.live_workers(grant, None)

    engine.run_sweep(queue, grant, settings, store, lambda record: record, Churn(raylets), ledger, workers=live)
    beside = max(record.provenance.cells_beside for record in store.read() if record.provenance)
    counts, end = [count for _, count in ledger.offers], time.monotonic() + PATIENCE
    while live() > 2 and time.monotonic() < end:  # Ray takes its time to believe that a raylet is dead
        time.sleep(0.5)
    counts.append(live())
    cluster.shutdown()
    return {"workers": grant.workers, "statuses": ledger.statuses, "beside": beside, "counts": counts}


def main() -> None:
    command, root = sys.argv[1], Path(sys.argv[2]).absolute()
    os.environ.update(cluster.QUIET)
    raylets = Raylets(root)
    try:
        raylets.add("second")
        if command == "churn":
            (root / "churn.json").write_text(json.dumps(churn(raylets, root)))
        else:
            print(raylets.address, flush=True)
            sys.stdin.read()
    finally:
        raylets.stop()


if __name__ == "__main__":
    main()
