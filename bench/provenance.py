"""Where a record comes from: commit, versions, device, threads, time."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from bench.records import Provenance

DISTRIBUTION = "ibau-bench"


class Commit(NamedTuple):
    """The commit of this package's own checkout; both are None where it runs from no checkout."""

    id: str | None
    dirty: bool | None


def provenance(device: torch.device, commit: Commit) -> Provenance:
    """The present state; ``cells_beside`` is filled in by whoever knows."""
    return Provenance(
        commit=commit.id,
        dirty=commit.dirty,
        python=platform.python_version(),
        torch=str(torch.__version__),
        package=package_version(),
        device=device_name(device),
        threads=torch.get_num_threads(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


@cache
def commit() -> Commit:
    """Asks git about the folder this file lies in. A package installed inside somebody else's checkout has none."""
    folder = Path(__file__).resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return Commit(None, None)
    head, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Commit(head, bool(status)) if head and status is not None else Commit(None, None)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def package_version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def is_gpu(name: str) -> bool:
    """Whether ``name`` is what ``device_name`` says of a GPU."""
    return re.search(r"\(\d+ CPUs\)$", name) is None


@cache
def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's model and how many CPUs this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} ({_cpus()} CPUs)"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
