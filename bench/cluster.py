"""Ray, started quietly: here, or joined where it runs already."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapters.errors import UserError
from bench.spec import Resources

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_worker_niceness": "0",  # a busy desktop would otherwise stretch every measured second
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # our own records are what a run resumes from
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
CONNECT_SECONDS = 8.0
JOIN_SECONDS = 60.0
OBJECT_STORE_BYTES = 100 * 1024**2
"""Next to nothing goes through it: data sets are memory-mapped from the cache, records are small."""


class CutOffError(RuntimeError):
    """The Ray node of this process is dead, and with it whatever ran there."""


@dataclass(frozen=True)
class Grant:
    """What one trial gets, and how many run at once."""

    cpu: float
    gpu: float
    threads: int
    workers: int
    note: str = ""
    """What the user should know of it, e.g. that there is no GPU."""


class ClusterStart(threading.Thread):
    """Starts Ray while the caller does something else; ``wait`` gives the result or raises what went wrong.

    The thread lives until ``stop``: the kernel ends Ray's processes together with the thread that started them.
    """

    def __init__(self, resources: Sequence[Resources], address: str | None, max_concurrent: int | None) -> None:
        super().__init__(name="ray", daemon=True)
        self._request = resources, address, max_concurrent
        self._grants: list[Grant] | None = None
        self._error: BaseException | None = None
        self._settled, self._released = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            self._grants = start(*self._request)
            import ray.tune  # noqa: F401  (takes seconds too: better here than later)
        except BaseException as error:  # handed to whoever waits
            self._error = error
        self._settled.set()
        self._released.wait()
        shutdown()

    def wait(self) -> list[Grant]:
        while not self._settled.wait(0.2):  # in steps, so that Ctrl-C gets through
            pass
        if self._error is not None:
            raise self._error
        assert self._grants is not None
        return self._grants

    def stop(self) -> None:
        """Shut Ray down, whatever state it is in."""
        self._released.set()
        if self.ident is not None:
            self.join()


def start(resources: Sequence[Resources], address: str | None, max_concurrent: int | None) -> list[Grant]:
    """Start Ray on this machine, or join the cluster at ``address``; ``UserError`` where nothing answers.

    There is room for each of ``resources`` in turn, which is what each grant is of.
    """
    os.environ.update(QUIET)
    if address is None:
        grants = [local_grant(one, max_concurrent) for one in resources]
        _start_here(grants)
        return grants
    check_address(address)
    _join(resources[0], address)
    return [_cluster_grant(one, max_concurrent) for one in resources]


def shutdown() -> None:
    """Shut Ray down if it was imported at all."""
    ray = sys.modules.get("ray")
    if ray is not None and hasattr(ray, "shutdown"):
        ray.shutdown()


def check_address(address: str) -> None:
    """Raise ``UserError`` unless something accepts a connection at ``address`` (HOST:PORT) within seconds."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536 or "://" in address:
        raise UserError(f"--address: found {address!r}; expected HOST:PORT of a Ray head node, e.g. 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"--address: nobody answers at {address} ({error}); expected a Ray head node there") from error


def _join(resources: Resources, address: str) -> None:
    """Something listens; whether it is Ray shows in whether joining ends in time."""
    failure: list[BaseException] = []
    threads = Grant(resources.cpu, resources.share, resources.threads, 1)

    def join() -> None:
        try:
            _init(threads, address)
        except BaseException as error:
            failure.append(error)

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    joining.join(JOIN_SECONDS)
    if joining.is_alive():
        raise UserError(
            f"--address: could not join what answers at {address}; expected a Ray head node there, and in"
            " RAY_AUTH_MODE and RAY_AUTH_TOKEN what it asks for, if it asks for a token"
        )
    if failure:
        raise UserError(f"--address: cannot join {address} ({failure[0]}); expected a Ray head node") from failure[0]


def _start_here(grants: Sequence[Grant]) -> None:
    cpus = max(1, *(math.ceil(grant.cpu * grant.workers) for grant in grants))
    settings: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    for last in (False, True):  # on a busy machine Ray's daemons may miss the time that Ray gives them
        try:
            return _init(grants[0], "local", num_cpus=cpus, **settings)
        except Exception as error:
            shutdown()
            if getattr(error, "errno", None) is not None:  # of the disk or the network, told by its own name
                raise
            if last:
                raise UserError(f"cannot start Ray on this machine: {error}") from error


def _init(grant: Grant, address: str, **settings: Any) -> None:
    """``address`` "local" always starts a Ray of its own, even where RAY_ADDRESS or a running one suggests another."""
    import ray

    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(grant.threads), **_passed_on()}},
        **settings,
    )
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _passed_on() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("IBAU_BENCH_")}


def local_grant(resources: Resources, max_concurrent: int | None) -> Grant:
    """What each cell gets on this machine; ``UserError`` where it has too few CPUs or GPUs."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if resources.cpu > cpus:
        raise UserError(f"resources.cpu: found {resources.cpu:g}; expected at most {cpus}, the CPUs of this machine")
    return _grant(resources, [float(cpus)], [float(torch.cuda.device_count())], max_concurrent)


def _cluster_grant(resources: Resources, max_concurrent: int | None) -> Grant:
    cpus, gpus = _nodes()
    most = max(cpus, default=0.0)
    if resources.cpu > most:
        shutdown()
        raise UserError(f"resources.cpu: found {resources.cpu:g}; expected at most {most:g}, the largest node's CPUs")
    return _grant(resources, cpus, gpus, max_concurrent)


def live_workers(grant: Grant, max_concurrent: int | None) -> int:
    """How many workers of ``grant`` the nodes have room for that are in the cluster now."""
    room = _room(grant.cpu, grant.gpu, *_nodes())
    return min(room, max_concurrent or room)


def is_cut_off() -> bool:
    """Whether the node that this process hangs on is dead, as far as Ray knows and answers.

    Nothing that is started from here then ever runs. Ray mostly ends the process itself, in words of its own; where no
    worker is left that it could miss, it waits forever.
    """
    import ray

    return ray.get_runtime_context().get_node_id() in dead_nodes()


def dead_nodes() -> set[str]:
    """The ids of nodes that were in the cluster and are dead, as far as Ray knows and answers."""
    import ray
    from ray.exceptions import RayError

    try:
        return {str(node["NodeID"]) for node in ray.nodes() if not node.get("Alive")}
    except RayError:
        return set()


def _nodes() -> tuple[list[float], list[float]]:
    """The CPUs and the GPUs of each node of the cluster, as far as it is alive."""
    import ray

    nodes = [node.get("Resources", {}) for node in ray.nodes() if node.get("Alive")]
    cpus, gpus = ([float(node.get(kind, 0.0)) for node in nodes] for kind in ("CPU", "GPU"))
    return cpus, gpus


def _grant(resources: Resources, cpus: list[float], gpus: list[float], max_concurrent: int | None) -> Grant:
    """What each cell gets on nodes with so many ``cpus`` and ``gpus``, in the nodes' order."""
    cpu, gpu, note = resources.cpu, 0.0, "on the CPU, as resources.gpu is 0"
    total = int(sum(gpus))
    if total == 0:
        note = "on the CPU: no GPU found"
    elif resources.share > 0:
        gpu = float(math.ceil(max(1.0, resources.share))) if resources.alone else resources.share
        note = f"on {total} GPU(s), {gpu:g} of one for each cell"
    if resources.alone and gpu == 0:
        cpu = max(cpus)  # every CPU of a node; a smaller node gets none, for its times would be another machine's
        note += ", each cell with a machine to itself"
    workers = _room(cpu, gpu, cpus, gpus)
    if workers < 1:
        raise UserError(f"resources.gpu: found {resources.share:g}; expected at most {total}, the GPUs there are")
    return Grant(cpu, gpu, resources.threads, min(workers, max_concurrent or workers), note)


def _room(cpu: float, gpu: float, cpus: list[float], gpus: list[float]) -> int:
    """How many cells fit on nodes with so many ``cpus`` and ``gpus``."""
    workers = sum(fits(count, cpu) for count in cpus)
    if gpu:
        # A fraction of one GPU cannot be put together from two, nor several from two machines.
        workers = min(workers, sum(fits(count, gpu) if gpu >= 1 else int(count) * fits(1, gpu) for count in gpus))
    return workers


def fits(count: float, share: float) -> int:
    """How many shares there are in ``count``: ten tenths in one, though 1 // 0.1 is 9."""
    return math.floor(count / share + 1e-9)
