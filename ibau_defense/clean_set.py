"""What a clean set has to be, checked where it comes in."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""How far over or under [0, 1] rounding may have taken a pixel."""


def check_clean_set(images: Tensor, labels: Tensor) -> None:
    """Refuse a clean set on which unlearning would mean something else, or nothing. Reads the device once.

    Args:
        images: (n, C, H, W) float in [0, 1].
        labels: (n,) int64.

    Raises:
        ValueError: other types, not as many labels as images, or pixels that are NaN or outside [0, 1].
    """
    if len(images) != len(labels):
        raise ValueError(f"labels: found {len(labels)}; expected one for each of {len(images)} images")
    if not images.is_floating_point():
        raise ValueError(f"images: found {images.dtype}; expected a floating-point type, with values in [0, 1]")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels: found {labels.dtype}; expected torch.int64")
    if images.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN is refused
        raise ValueError(f"images: found values from {low:.7g} to {high:.7g}; expected all of them in [0, 1]")
