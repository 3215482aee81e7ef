"""SIGTERM, by which schedulers and shells end a job, taken as Ctrl-C is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises ``KeyboardInterrupt``; what it did before it does afterwards.

    To be entered once Ray is up, which sets a handler of its own. In another thread than the main one, which alone may
    set handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not set from Python


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
