"""The preprocessing of NAD's published code: a shifted crop, a mirror image half of the time, a small hole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ibau_defense.cuda import sent

PAD = 4
HOLE = 2
"""Side of the hole in pixels: the code's length of 3, halved and rounded down to either side of a centre."""


def crop_flip_cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """(n, C, H, W) float in [0, 1] to the same: each image shifted by up to 4 pixels (black comes in from outside),
    mirrored with probability 1/2, and with a black hole of 2 x 2 pixels.
    """
    count, _, height, width = images.shape
    device = images.device
    shift = torch.randint(0, 2 * PAD + 1, (count, 2), generator=generator)
    flip = torch.rand(count, generator=generator) < 0.5
    centre = torch.rand(count, 2, generator=generator)
    shift, flip, centre = (sent(one, device) for one in (shift, flip, centre))
    rows = torch.arange(height, device=device) + shift[:, :1]
    columns = torch.arange(width, device=device).expand(count, -1)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + shift[:, 1:]
    padded = F.pad(images, (PAD, PAD, PAD, PAD)).permute(0, 2, 3, 1)
    index = torch.arange(count, device=device)[:, None, None]
    cropped = padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    hole = _inside(centre[:, 0], height)[:, None, :, None] & _inside(centre[:, 1], width)[:, None, None, :]
    return cropped.masked_fill(hole, 0.0)


def _inside(centre: Tensor, size: int) -> Tensor:
    """(n, size) bool: the pixels of a hole around ``centre``, (n,) in [0, 1), cut off at the border."""
    middle = (centre * size).long()[:, None]
    place = torch.arange(size, device=centre.device)
    return (place >= middle - HOLE // 2) & (place < middle + HOLE // 2)
