"""Where a timing begins and ends on a device that works on its own."""

from __future__ import annotations

import torch


def synchronise(device: torch.device) -> None:
    """Wait for all work on ``device``; a no-op on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
