"""SIG (Barni et al., 2019): a horizontal sine wave added to the image."""

from __future__ import annotations

import math

import torch

from adapters.attacks.image_trigger import ImageTrigger
from adapters.attacks.settings import Count, Share
from adapters.errors import UserError

AMPLITUDE, PERIODS = 20 / 255, 6
"""Barni et al.'s on colour images: 20 of 255 levels, six periods over the image's width."""


def sinusoid(
    image_shape: tuple[int, int, int], seed: int = 0, *, amplitude: Share = AMPLITUDE, periods: Count = PERIODS
) -> ImageTrigger:
    """clip(x + a sin(2 pi j f / W)) in column j, the same in every row and channel. ``seed`` plays no part.

    Barni et al. put it on images of the target class alone and leave the labels: that is ``clean_label: true``.

    An image can show a quarter of its width in periods, else the wave aliases to nothing: on narrow images the default
    is that, and other ``periods`` that are more raise ``UserError``.
    """
    channels, height, width = image_shape
    most = max(1, width // 4)
    if periods > most and periods != PERIODS:
        raise UserError(f"periods: found {periods}; expected at most {most}, a quarter of the images' width ({width})")
    periods = min(periods, most)
    columns = torch.arange(width, dtype=torch.float64)
    wave = amplitude * torch.sin(2 * math.pi * columns * periods / width)
    pattern = wave.to(torch.float32).expand(channels, height, width).clone()
    return ImageTrigger(keep=torch.ones(1, height, width), pattern=pattern, name="sig")
