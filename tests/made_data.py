"""A data set made by hand: 90 noise images of 8 x 8 pixels, three classes."""

from __future__ import annotations

import torch

from adapters.protocols import ImageTensors, LabelledImages


def data(seed: int = 0) -> ImageTensors:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (90, 3, 8, 8), dtype=torch.uint8, generator=generator)
    part = LabelledImages(images, torch.randint(0, 3, (90,), generator=generator))
    return ImageTensors("made", part, part, ("a", "b", "c"), 30)
