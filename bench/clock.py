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
