"""scikit-learn's 1,797 handwritten digits: embedded, so that everything can be tried without a network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from adapters.datasets.base import stratified_split
from adapters.protocols import ImageTensors, LabelledImages

TEST_SIZE, POOL_SIZE, IMAGE_SIZE = 850, 450, 32


class Digits:
    """8 x 8 greys in 17 steps, scaled to uint8 and enlarged to 3 x 32 x 32; 947 to train on, 850 to test on."""

    name = "digits"

    def sources(self, root: Path) -> list[Path]:
        return []

    def load(self, root: Path) -> ImageTensors:
        from sklearn.datasets import load_digits

        raw = load_digits()
        images = _enlarge(torch.from_numpy(raw.images))
        labels = torch.from_numpy(raw.target).to(torch.int64)
        train, test = stratified_split(labels.tolist(), TEST_SIZE, seed=0)
        return ImageTensors(
            name=self.name,
            train=LabelledImages(images[train], labels[train]),
            test=LabelledImages(images[test], labels[test]),
            class_names=tuple(str(name) for name in raw.target_names),
            pool_size=POOL_SIZE,
        )


def _enlarge(images: Tensor) -> Tensor:
    """(N, 8, 8) float in [0, 16] to (N, 3, 32, 32) uint8 in [0, 255], bilinear."""
    pixels = images.to(torch.float64).unsqueeze(1) * (255 / 16)
    enlarged = interpolate(pixels, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    return enlarged.round().clamp(0, 255).to(torch.uint8).repeat(1, 3, 1, 1)
