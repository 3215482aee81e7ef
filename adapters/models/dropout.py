"""Dropout whose mask costs little on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """``nn.Dropout``; on the CPU its mask is drawn sixteen bits an element instead of one serial Bernoulli draw.

    There torch draws each element of a mask in one thread, a visible part of a training step of the simplified VGG;
    here four elements come from one 64-bit draw. An element is dropped with probability
    p rounded to a multiple of 2⁻¹⁶, and what is kept is scaled by the inverse of the rounded probability, so the
    expectation is exact. The bits come from torch's global generator.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Any shape and floating dtype; zeros with probability ``p`` in training, the input itself in evaluation."""
        if not self.training or self.p in (0, 1) or self.inplace or images.device.type != "cpu":
            return super().forward(images)
        dropped = round(self.p * _LEVELS)
        draws = torch.empty(images.numel() // 4 + 1, dtype=torch.int64).random_(-(1 << 63), None)
        bits = draws.view(torch.int16)[: images.numel()]
        kept = (bits >= dropped - _LEVELS // 2).to(images.dtype).mul_(_LEVELS / (_LEVELS - dropped))
        return images * _laid_out_as(kept, images)


def _laid_out_as(flat: Tensor, images: Tensor) -> Tensor:
    """``flat`` in the shape of ``images`` and, for batches of images, in their memory format: the draws are
    independent, so which one an element gets does not matter, and a product of equal layouts copies nothing."""
    if images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last):
        count, channels, height, width = images.shape
        return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(images.shape)
