"""Channels switched off by a forward hook, on any architecture."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ChannelMask:
    """A forward hook that multiplies a feature map by ``mask``, (C,) float of zeros and ones.

    No gradient reaches a masked channel, so training cannot revive it. The mask is no part of the state dict; deep
    copies of the model have a copy of it.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """``output``: (N, C, …) feature map of the hooked module."""
        shape = (1, -1) + (1,) * (output.ndim - 2)
        return output * self.mask.to(device=output.device, dtype=output.dtype).view(shape)
