"""What a clean set has to be, checked where it comes in."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""How far over or under [0, 1] rounding may have taken a pixel."""


def check_clean_set(images: Tensor, labels: Tensor) -> None:
    """Refuse a clean set on which unlearning would mean something else, or nothing. Reads the device twice.

    Args:
        images: (n, C, H, W) float in [0, 1].
        labels: (n,) int64.

    Raises:
        ValueError: other types or shapes, not as many labels as images, labels below 0, or pixels that are NaN or
            outside [0, 1].
    """
    if images.dim() != 4:
        raise ValueError(f"images: found shape {tuple(images.shape)}; expected (n, C, H, W)")
    if labels.dim() != 1:
        raise ValueError(f"labels: found shape {tuple(labels.shape)}; expected (n,)")
    if len(images) != len(labels):
        raise ValueError(f"labels: found {len(labels)}; expected one for each of {len(images)} images")
    if not images.is_floating_point():
        raise ValueError(f"images: found {images.dtype}; expected a floating-point type, with values in [0, 1]")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels: found {labels.dtype}; expected torch.int64")
    if images.numel() == 0:
        return
    if bool((labels < 0).any()):
        raise ValueError(f"labels: found {int(labels.min())}; expected class numbers, from 0")
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN is refused
        raise ValueError(f"images: found values from {low:.7g} to {high:.7g}; expected all of them in [0, 1]")


def check_tensors(images: object, labels: object) -> None:
    """Raise ``ValueError`` for an array of another library."""
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise ValueError(f"{name}: found {type(given).__name__}; expected a torch.Tensor")
