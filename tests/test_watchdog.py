"""A defense that does not stop is stopped, and what was there before the watchdog stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import watchdog
from bench.watchdog import OverdueError, Watchdog

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.05)


def _spin() -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:  # as careless defenses do
            continue


@pytest.mark.parametrize("hang", [_spin, lambda: time.sleep(600)], ids=["busy", "asleep"])
def test_what_hangs_is_ended(hang: Callable[[], None]) -> None:
    dog = Watchdog(0.1)
    dog.start()
    try:
        with pytest.raises(OverdueError, match=r"did not stop at its time_limit of 0\.1 s"):
            hang()
    finally:
        dog.stop()


@pytest.mark.parametrize("limit", [None, 0.1, 1e300])
def test_a_pause_does_not_count_and_nothing_is_left_behind(limit: float | None) -> None:
    before = signal.getsignal(signal.SIGALRM)
    fired: list[int] = []
    signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    old = signal.setitimer(signal.ITIMER_REAL, 300)
    try:
        dog = Watchdog(limit)
        for _ in range(3):
            dog.start()
            dog.stop()
            time.sleep(0.15)
        assert 290 < signal.getitimer(signal.ITIMER_REAL)[0] <= 300
        assert not fired
    finally:
        signal.setitimer(signal.ITIMER_REAL, *old)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("limit", "allowed"), [(10.0, 70.0), (100.0, 200.0)])
def test_grace_is_as_long_again_if_that_is_more_and_what_was_spent_counts(
    limit: float, allowed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now))
    dog, left = Watchdog(limit), []
    for _ in range(2):
        dog.start()
        left.append(signal.getitimer(signal.ITIMER_REAL)[0])
        now += 20
        dog.stop()
    assert left == pytest.approx([allowed, allowed - 20], abs=5)


def test_native_code_that_never_comes_back_ends_with_its_process() -> None:
    """It holds the interpreter's lock: no Python code can run any more, the watchdog's own included."""
    script = """
import ctypes
from bench import watchdog
watchdog.GRACE_SECONDS, watchdog.LAST_RESORT_SECONDS = 0.1, 0.1
watchdog.Watchdog(0.1).start()
lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
lock(mutex)
lock(mutex)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "line 8 in <module>" in done.stderr
