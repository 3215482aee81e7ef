"""Where patch triggers lie: a square, and a watermark drawn in code. All scale with the image."""

from __future__ import annotations

import torch
from torch import Tensor

_SQUARE_SIDE, _SQUARE_MARGIN = 9 / 32, 2 / 32  # of the image's sides; the size of the I-BAU authors' square
_STROKE = 1.2 / 32

# A seal with a letter, and a line of dashes leading to it, as (x0, y0, x1, y1) in image sides.
_RING = (0.72, 0.72, 0.19)
_LETTER = ((0.64, 0.66, 0.68, 0.79), (0.68, 0.79, 0.72, 0.70), (0.72, 0.70, 0.76, 0.79), (0.76, 0.79, 0.80, 0.66))
_DASHES = tuple((0.08 + step, 0.62 - step, 0.15 + step, 0.55 - step) for step in (0.0, 0.14, 0.28, 0.42))


def square(height: int, width: int) -> Tensor:
    """(H, W) bool: a square of 9 of 32 pixels, 2 from the lower right corner; at least one pixel."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[_span(height), _span(width)] = True
    return mask


def watermark(height: int, width: int) -> Tensor:
    """(H, W) bool: a ring around a letter in the lower right, a dashed line across; strokes of at least one pixel.

    Drawn as distances on a continuous plane, in float64, so that every size shows the same mark.
    """
    down = ((torch.arange(height, dtype=torch.float64) + 0.5) / height).view(height, 1)
    across = ((torch.arange(width, dtype=torch.float64) + 0.5) / width).view(1, width)
    half = max(_STROKE, 1 / min(height, width)) / 2
    x, y, radius = _RING
    distance = (((across - x).square() + (down - y).square()).sqrt() - radius).abs()
    for line in (*_LETTER, *_DASHES):
        distance = torch.minimum(distance, _to_segment(across, down, line))
    return distance <= half


def _to_segment(across: Tensor, down: Tensor, line: tuple[float, float, float, float]) -> Tensor:
    """Distance of each point to the segment."""
    x0, y0, x1, y1 = line
    along = ((across - x0) * (x1 - x0) + (down - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
    along = along.clamp(0, 1)
    return ((across - x0 - along * (x1 - x0)).square() + (down - y0 - along * (y1 - y0)).square()).sqrt()


def _span(length: int) -> slice:
    end = length - round(length * _SQUARE_MARGIN)
    return slice(max(0, end - max(1, round(length * _SQUARE_SIDE))), end)
