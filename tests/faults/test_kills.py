"""SIGKILL of driver, worker, raylet and agents at random moments: what was recorded stays, the same command goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_sweep
from conftest import Note
from stage import Ended, Running, Stage, Union, command_line, is_alive

pytestmark = pytest.mark.timeout(3600)

SHARES = {"driver": 0.4, "worker": 0.3, "raylet": 0.2, "agent of the raylet": 0.1}
GONE_SECONDS = 180.0
"""Workers go at once; Ray's own agents of a raylet that was killed at its start have been seen for over a minute."""
AGAIN = (
    "The same command, until it had nothing left to do. No record written before a kill was touched by what followed."
)


class Moment(NamedTuple):
    """When to strike: after so many new records, or so many seconds, and a little later still."""

    records: int | None
    seconds: float

    @classmethod
    def draw(cls, chance: random.Random) -> Moment:
        if chance.random() < 0.25:  # while the sweep starts up
            return cls(None, chance.uniform(0, 12))
        return cls(chance.randint(1, 4), chance.uniform(0, 0.5))


def _tree() -> dict[str, Any]:
    """Two victims and 24 cells of some tenths of a second."""
    tuning = {"name": "fine_tuning", "epochs": 20}
    return tiny_sweep.tree(grid={"poison_ratio": [0.1, 0.3], "run": list(range(12)), "defense": [tuning]})


Strike = Callable[[Running, int, Moment, random.Random], int]
"""Kills at most so many processes of a running sweep, from that moment on; returns how many it killed."""


def _await(running: Running, before: int, moment: Moment) -> bool:
    """Whether the moment came before the sweep was over."""
    if moment.records is not None:
        running.until(lambda: len(running.stage.lines()) >= before + (moment.records or 0))
    running.until(lambda: False, moment.seconds)
    return running.process.poll() is None


def _kill_driver(running: Running, most: int, moment: Moment, chance: random.Random) -> int:
    if not _await(running, len(running.stage.lines()), moment):
        return 0
    below = running.descendants(".")
    running.kill()
    end = time.monotonic() + GONE_SECONDS
    while time.monotonic() < end and any(map(is_alive, below)):
        time.sleep(0.1)
    left = [command_line(one).strip() for one in below if is_alive(one)]
    assert not left, f"still there {GONE_SECONDS:g} s after the driver: {left}"
    return 1


def _kill_workers(running: Running, most: int, moment: Moment, chance: random.Random) -> int:
    killed = 0
    while killed < min(most, 5) and _await(running, len(running.stage.lines()), moment):
        workers = running.descendants(r"^ray::(?!IDLE|\w*Agent\b)")
        if workers:
            killed += _kill(chance.choice(workers))
        moment = Moment(chance.randint(0, 3), chance.uniform(0, 1))
    return killed


def _kill_raylet(running: Running, most: int, moment: Moment, chance: random.Random) -> int:
    if not _await(running, len(running.stage.lines()), moment):
        return 0
    return _kill(*running.descendants(r"/raylet/raylet "))


def _kill_agent(running: Running, most: int, moment: Moment, chance: random.Random) -> int:
    """One of the two without which a raylet ends itself, in good order."""
    if not _await(running, len(running.stage.lines()), moment):
        return 0
    agents = running.descendants(r"^ray::\w*Agent\b")
    return _kill(chance.choice(agents)) if agents else 0


def _kill(*processes: int) -> int:
    for one in processes:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            return 0
    return min(1, len(processes))


class Campaign(NamedTuple):
    killed: int
    union: Union
    seen: Ended | None


def _campaign(folder: Path, kills: int, strike: Strike, chance: random.Random) -> Campaign:
    """Strike sweeps until ``kills`` processes are dead, each sweep run again until it is done."""
    killed, expected, lost, doubled, seen = 0, 0, 0, 0, None
    while killed < kills:
        stage = Stage(folder / f"{expected}", _tree())
        more: list[str] = []
        while True:
            before = stage.lines()
            running = stage.start(*more)
            struck = strike(running, kills - killed, Moment.draw(chance), chance) if killed < kills else 0
            killed, ended = killed + struck, running.wait()
            after = stage.lines()
            gone = [line for line in before if line not in after and b'"status":"failed"' not in line]
            assert not gone, "a record that was there is gone"
            if struck and (seen is None or len(ended.error) > len(seen.error)):
                seen = ended
            if ended.status == 0:
                break
            assert struck or ended.status == 1, ended
            more = ["--retry-failed"] if ended.status == 1 else []
        union = stage.union()
        assert union.statuses == {"ok": union.expected}
        expected, lost, doubled = expected + union.expected, lost + union.lost, doubled + union.doubled
    return Campaign(killed, Union(expected, lost, doubled, {}), seen)


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen(["sleep", "600"])
    assert is_alive(process.pid)
    process.kill()
    end = time.monotonic() + GONE_SECONDS
    while time.monotonic() < end and is_alive(process.pid):
        time.sleep(0.01)
    assert not is_alive(process.pid)
    assert Path("/proc", str(process.pid)).exists(), "nobody has asked after it yet"
    process.wait()
    assert not is_alive(process.pid)


@pytest.mark.parametrize("whom", SHARES)
def test_killed_at_random_moments(
    whom: str, request: pytest.FixtureRequest, note: Note, chance: random.Random, tmp_path: Path
) -> None:
    kills = max(1, round(SHARES[whom] * request.config.getoption("--kills")))
    strikes: list[Strike] = [_kill_driver, _kill_workers, _kill_raylet, _kill_agent]
    strike = dict(zip(SHARES, strikes, strict=True))[whom]
    campaign = _campaign(tmp_path, kills, strike, chance)
    stage = Stage(tmp_path / "0", _tree())
    status = campaign.seen.status if campaign.seen else None
    seen = stage.shorten(campaign.seen.error + campaign.seen.out)[-6:] if campaign.seen else []
    note(
        f"{whom} killed",
        f"SIGKILL of the {whom} at {campaign.killed} random moments, some of them while the sweep starts up.",
        stage, [*seen, f"exit status {status}"], AGAIN, injected=campaign.killed, union=campaign.union,
        others=campaign.union.expected,
    )  # fmt: skip
