"""What several pieces of work took together; and what would be counted among them, done before."""

from __future__ import annotations

import time

import torch


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
