"""The time at which a device is done with its work, and what several pieces of work took together."""

from __future__ import annotations

import time

import torch


def synchronise(device: torch.device) -> None:
    """Wait for all work on ``device``; a no-op on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds of ``time.perf_counter`` once ``device`` has done everything asked of it."""
    synchronise(device)
    return time.perf_counter()


class Stopwatch:
    """``seconds`` spent inside its ``with`` blocks, by ``time.perf_counter``; blocks do not nest.

    No device is waited for: it is for work whose result comes back to Python.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since


def load_what_torch_loads_late() -> None:
    """Have torch import its compiler now: the first optimiser made in a process does so, which takes seconds.

    Otherwise the first cell of each worker would pay for it, as the time of its defense.
    """
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
