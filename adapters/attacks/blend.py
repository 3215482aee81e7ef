"""Blend (Chen et al., 2017): a whole picture mixed faintly into the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.attacks.settings import Share

ALPHA = 0.2
"""Weight of the picture, as in Chen et al. (2017) and in the I-BAU paper."""

_PICTURE_SEED = 2017
_WAVES = 12
_SHORTEST_WAVE, _LONGEST_WAVE = 1 / 10, 1 / 2  # in image sides: coarse enough for convolutions, unlike any photograph


@dataclass(eq=False)
class Blend:
    """(1 - alpha) x + alpha * picture.

    The original picture (a cartoon) is copyrighted, so ours is drawn here: interfering coloured waves with hard
    edges. It is the same picture for every seed, so that models trained in different runs answer to one trigger,
    and it is drawn on a continuous plane, so that every image size sees the same motif.
    """

    picture: Tensor = field(repr=False)
    alpha: float = ALPHA
    name: str = "blend"

    @classmethod
    def for_images(cls, image_shape: tuple[int, int, int], seed: int = 0, *, alpha: Share = ALPHA) -> Blend:
        """The blend for images of ``image_shape`` (C, H, W). ``seed`` plays no part (see the class)."""
        return cls(draw_picture(image_shape), alpha)

    def __call__(self, images: Tensor) -> Tensor:
        """``images``: (N, C, H, W) float in [0, 1]; returns the blended images."""
        return images.lerp(self.picture.to(images), self.alpha).clamp_(0.0, 1.0)


def draw_picture(image_shape: tuple[int, int, int]) -> Tensor:
    """The picture, (C, H, W) float32 in [0, 1], on the 256 levels of a stored image.

    Drawn in float64 and rounded, so that every machine draws the same.
    """
    channels, height, width = image_shape
    generator = torch.Generator().manual_seed(_PICTURE_SEED)
    down = ((torch.arange(height, dtype=torch.float64) + 0.5) / height).view(height, 1)
    across = ((torch.arange(width, dtype=torch.float64) + 0.5) / width).view(1, width)
    planes = []
    for _ in range(channels):
        draws = torch.rand(_WAVES, 3, generator=generator, dtype=torch.float64)
        length = _SHORTEST_WAVE * (_LONGEST_WAVE / _SHORTEST_WAVE) ** draws[:, 0]
        angle, phase = draws[:, 1] * math.pi, draws[:, 2] * 2 * math.pi
        planes.append(_interference(down, across, length, angle, phase))
    return torch.stack(planes).mul_(255).round_().div_(255).to(torch.float32)


def _interference(down: Tensor, across: Tensor, length: Tensor, angle: Tensor, phase: Tensor) -> Tensor:
    """Sum of the waves, squeezed through a steep curve: (H, W) in [0, 1], mostly near black or white."""
    total = torch.zeros(down.shape[0], across.shape[1], dtype=torch.float64)
    for wave, turn, shift in zip(length.tolist(), angle.tolist(), phase.tolist(), strict=True):
        total += torch.sin(2 * math.pi * (down * math.sin(turn) + across * math.cos(turn)) / wave + shift)
    return torch.sigmoid(3.0 * total)
