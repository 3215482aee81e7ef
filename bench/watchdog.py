"""What ends a defense that does not end by itself, long after its time limit."""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from typing import Any

GRACE_SECONDS = 60.0
"""A defense may take this much longer than its time limit, or as long again if that is more: it looks at the clock
between its steps only."""
LAST_RESORT_SECONDS = 30.0
"""How long after that the whole process ends, if the defense sits where Python cannot interrupt it."""
LONGEST_SECONDS = 1e7
"""What timers of the system take for sure."""
_STDERR = 2


class OverdueError(BaseException):
    """A defense went on long after its time limit. No ``Exception``: it must get past whatever the defense catches."""


class Watchdog:
    """Counts the defense's own seconds between ``start`` and ``stop``; without a limit it does nothing.

    When time is up it raises ``OverdueError`` in the main thread, wherever that is in Python code or in a wait. Native
    code that does not come back is ended with the process, its traceback on standard error; the sweep's driver then
    sees a worker that died. Elsewhere than in the main thread, only the latter.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._left = None if limit is None else limit + max(GRACE_SECONDS, limit)
        self._since: float | None = None
        self._earlier: tuple[Any, float] | None = None

    def start(self) -> None:
        if self._left is None or self._since is not None:
            return
        self._since = time.monotonic()
        left = min(max(0.01, self._left), LONGEST_SECONDS)
        faulthandler.dump_traceback_later(left + LAST_RESORT_SECONDS, exit=True, file=_STDERR)
        if _can_interrupt():
            handler = signal.signal(signal.SIGALRM, self._raise)
            self._earlier = handler, signal.setitimer(signal.ITIMER_REAL, left)[0]

    def stop(self) -> None:
        if self._left is None or self._since is None:
            return
        spent, self._since = time.monotonic() - self._since, None  # first of all: a signal on its way raises no more
        self._left -= spent
        faulthandler.cancel_dump_traceback_later()
        if self._earlier is not None:
            handler, left = self._earlier
            self._earlier = None
            signal.setitimer(signal.ITIMER_REAL, max(0.01, left - spent) if left else 0.0)
            signal.signal(signal.SIGALRM, handler)

    def _raise(self, *_: object) -> None:
        if self._since is not None:
            raise OverdueError(f"it did not stop at its time_limit of {self.limit:g} s, and was ended")


def _can_interrupt() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
