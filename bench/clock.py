"""The time at which a device is done with its work."""

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


def load_what_torch_loads_late() -> None:
    """Have torch import its compiler now: the first optimiser made in a process does so, which takes seconds.

    Otherwise the first cell of each worker would pay for it, as the time of its defense.
    """
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
