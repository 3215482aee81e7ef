"""What a data set plug-in provides, and the helpers that several of them share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from adapters.errors import UserError
from adapters.protocols import ImageTensors, LabelledImages

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

# What Pillow raises on a file it cannot decode: OSError (truncated, unknown format), SyntaxError (broken PNG),
# ValueError (bad header), DecompressionBombError (absurd size).
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@runtime_checkable
class Source(Protocol):
    """A ``Dataset`` that says which files it is decoded from, so that the cache notices when they change."""

    @property
    def name(self) -> str: ...

    def sources(self, root: Path) -> Sequence[Path]:
        """Files and folders whose name, size and time of change decide the content; downloads what it can.

        Raises ``UserError`` saying what was looked for, where, and how to get it.
        """
        ...

    def load(self, root: Path) -> ImageTensors:
        """Decode everything below ``root``; see ``adapters.protocols.Dataset``."""
        ...


def read_image(path: Path, size: int, box: Box | None = None) -> Pixels:
    """Decode ``path``, crop to ``box`` (shares of width and height, in [0, 1]) and resize, antialiased.

    A whole image is resized bilinearly, a crop bicubically: crops are small, and bilinear enlarging blurs them (the
    authors' GTSRB BadNets model has an accuracy of 98.05 % on bicubic crops and 97.86 % on bilinear ones).

    Grey images are repeated to three channels, an alpha channel is dropped, 16-bit greys are scaled to 8 bits.
    Returns (3, size, size) uint8 in [0, 255]. Raises ``UserError`` naming the file when it cannot be decoded.
    """
    try:
        with Image.open(path) as stored:
            image = _to_rgb(stored)
            if box is not None:
                crop = image.crop(_pixels(box, image.width, image.height))
                image = crop.resize((size, size), Image.Resampling.BICUBIC)
            elif image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
    except _UNREADABLE as error:
        raise UserError(f"cell.dataset: {path} cannot be read as an image ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow clips 16-bit greys to 255 instead of scaling them
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Whole pixels, at least one: a resize of fractions would let what lies around the crop bleed in."""
    left, top, right, bottom = (round(share * side) for share, side in zip(box, (width, height) * 2, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def read_images(
    paths: Sequence[Path], labels: Sequence[int], size: int, boxes: Sequence[Box] | None = None
) -> LabelledImages:
    """``read_image`` over many files: (N, 3, size, size) uint8 images and (N,) int64 labels."""
    log.info("decoding %d images below %s, once", len(paths), paths[0].parent.parent if paths else "nothing")
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    for index, path in enumerate(paths):
        images[index] = read_image(path, size, boxes[index] if boxes else None)
    return LabelledImages(torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64))


def stratified_split(labels: Sequence[int], test_size: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of a training and a test part; every class gives the test part its share, exact in total.

    Shares are rounded down and the images still missing come from the classes with the largest remainders. The
    draw uses numpy's ``RandomState``, whose stream is frozen, so that the split is the same everywhere.
    """
    values = np.asarray(labels)
    classes, counts = np.unique(values, return_counts=True)
    share = counts * (test_size / len(values))
    take = np.floor(share).astype(int)
    order = np.argsort(-(share - take), kind="stable")
    take[order[: test_size - int(take.sum())]] += 1
    random = np.random.RandomState(seed)
    test: list[int] = []
    for label, count in zip(classes, take, strict=True):
        test += random.permutation(np.flatnonzero(values == label))[:count].tolist()
    chosen = set(test)
    return [index for index in range(len(values)) if index not in chosen], sorted(test)
