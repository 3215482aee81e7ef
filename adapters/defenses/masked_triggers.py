"""Recovered triggers, one a class: a mask that says where, and a pattern that says what."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MaskedTriggers:
    """``masks``: (K, 1, H, W) and ``patterns``: (K, C, H, W), float32 in [0, 1]; row k leads to the k-th class."""

    masks: Tensor
    patterns: Tensor

    def stamp(self, images: Tensor, rows: Tensor) -> Tensor:
        """(1 - m)x + m p: (n, C, H, W) float in [0, 1], each image with the trigger of its entry in ``rows`` (n,)."""
        masks = self.masks[rows]
        return (1 - masks) * images + masks * self.patterns[rows]

    def norms(self) -> Tensor:
        """(K,): ℓ1 norm of each mask, in pixels."""
        return self.masks.abs().sum(dim=(1, 2, 3))
