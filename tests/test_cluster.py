"""Sweeps on several machines: what each cell is granted, and a real cluster of raylets that come and go."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_sweep

from adapters.errors import UserError
from bench import cluster
from bench.cluster import Grant, _grant
from bench.records import RecordStore
from bench.spec import Resources

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "expected"),
    [
        ({"cpu": 1, "gpu": 0.25}, [16], [2], (1, 0.25, 8)),
        ({"cpu": 1, "gpu": 0.4}, [16], [2], (1, 0.4, 4)),  # two fit on one GPU
        ({"cpu": 1, "gpu": 0.2}, [16], [1], (1, 0.2, 5)),  # though 1 // 0.2 is 4
        ({"cpu": 1, "gpu": 0.1}, [16], [1], (1, 0.1, 10)),
        ({"cpu": 0.1, "gpu": 0}, [1], [0], (0.1, 0, 10)),
        ({"cpu": 4, "gpu": 0.25}, [16], [2], (4, 0.25, 4)),
        ({"cpu": 2, "gpu": 0}, [3, 3], [0, 0], (2, 0, 2)),  # no cell has a CPU of each machine
        ({"cpu": 1, "gpu": 2}, [8, 8], [3, 3], (1, 2, 2)),
        ({"cpu": 1, "gpu": 0.25, "alone": True}, [16, 16], [2, 4], (1, 1, 6)),
        ({"cpu": 1, "gpu": 1.5, "alone": True}, [16], [4], (1, 2, 2)),
        ({"cpu": 1, "gpu": 0.25, "alone": True}, [8, 8, 2], [0, 0, 0], (8, 0, 2)),
    ],
)
def test_what_a_cell_gets_and_how_many_run_at_once(
    resources: dict[str, Any], cpus: list[float], gpus: list[float], expected: tuple[float, float, int]
) -> None:
    grant = _grant(Resources(**resources), cpus, gpus, None)
    assert (grant.cpu, grant.gpu, grant.workers) == expected
    assert grant.threads == max(1, resources["cpu"])
    assert _grant(Resources(**resources), cpus, gpus, 1).workers == 1


def test_more_gpus_than_a_machine_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"resources\.gpu: found 8; expected at most 6"):
        _grant(Resources(gpu=8), [16, 16], [2, 4], None)


def _environment(folder: Path) -> dict[str, str]:
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HOME": str(folder),
        "RAY_AUTH_MODE": "disabled",
    }


@pytest.mark.ray
def test_a_raylet_that_joins_is_used_and_one_that_dies_loses_no_record(tmp_path: Path) -> None:
    command = [sys.executable, str(TESTS / "two_raylets.py"), "churn", str(tmp_path)]
    done = subprocess.run(
        command, env=_environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "churn.json").read_text())
    counts = told.pop("counts")
    assert told == {"workers": 2, "statuses": {"ok": 60}, "beside": 0}  # each raylet has room for one cell
    assert (counts[:2], counts[-1]) == ([2, 3], 2), "a raylet joined, and one died"
    store = RecordStore(tmp_path / "results")
    assert len(store.path.read_bytes().splitlines()) == len({one.id for one in store.read()}) == 60
    places = [line.split() for line in (tmp_path / "places").read_text().splitlines()]
    used = Counter(place for place, _ in places)
    assert used.keys() == {"head", "second", "third"}
    assert used["third"] > 10  # of those that were left when it joined, one in two or three
    runs = Counter(name for _, name in places)
    assert sum(count > 1 for count in runs.values()) <= 1  # the cell that the dying raylet had in hand


@pytest.mark.ray
def test_the_command_runs_unchanged_on_two_raylets(tmp_path: Path) -> None:
    """The sweep, the raylets and their workers: each in a working directory of its own, one results path."""
    tiny_sweep.write_images(tmp_path / "data")
    tiny_sweep.write(tmp_path, tiny_sweep.tree())
    environment = _environment(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, str(TESTS / "two_raylets.py"), "hold", str(tmp_path)],
        env=environment, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        address = holder.stdout.readline().strip()
        elsewhere = tmp_path / "driver"
        elsewhere.mkdir()
        command = [sys.executable, "-m", "bench.sweep", "../tiny.yaml", "--data-root", "../data", "--out", "../runs"]
        done = subprocess.run(
            [*command, "--address", address],
            env=environment, cwd=elsewhere, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    finally:
        holder.communicate("")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 at a time" in done.stdout
    records = RecordStore(tmp_path / "runs" / "tiny").read()
    assert (len(records), {one.status for one in records}) == (6, {"ok"})
    assert not list(elsewhere.iterdir())
    assert holder.returncode == 0


class _Busy:
    """Starts of Ray that fail so many times."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error, self.tried = failures, error, 0

    def __call__(self, grant: Grant, address: str, **settings: Any) -> None:
        self.tried += 1
        if self.tried <= self.left:
            raise self.error


def test_a_ray_that_does_not_start_is_started_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    late = RuntimeError("timed out\nduring startup")
    for failures, told in ((1, None), (2, "cannot start Ray on this machine: timed out during startup")):
        busy = _Busy(failures, late)
        monkeypatch.setattr(cluster, "_init", busy)
        if told is None:
            cluster._start_here([Grant(1, 0, 1, 1)])
        else:
            with pytest.raises(UserError, match=told):
                cluster._start_here([Grant(1, 0, 1, 1)])
        assert busy.tried == 2


def test_a_full_disk_is_not_told_as_rays_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = _Busy(1, OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(cluster, "_init", busy)
    with pytest.raises(OSError, match="No space left"):
        cluster._start_here([Grant(1, 0, 1, 1)])
    assert busy.tried == 1
