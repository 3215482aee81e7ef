"""The identity of a data set's content: the same for equal content whatever the name, another for any other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters.protocols import ImageTensors, LabelledImages
from bench.data_identity import data_identity


def images(count: int, seed: int) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(count) % 3)


def data(name: str = "one") -> ImageTensors:
    return ImageTensors(name, images(60, 0), images(30, 1), ("a", "b", "c"), 10)


def brighter(part: LabelledImages) -> LabelledImages:
    return LabelledImages(part.images.float().mul(0.9).to(torch.uint8), part.labels)


def relabelled(part: LabelledImages) -> LabelledImages:
    return LabelledImages(part.images, part.labels.flip(0))


def shorter(part: LabelledImages) -> LabelledImages:
    return LabelledImages(part.images[:-1], part.labels[:-1])


def test_the_name_does_not_count() -> None:
    assert data_identity(data()) == data_identity(data("another"))
    assert len(data_identity(data())) == 16


@pytest.mark.parametrize("change", [brighter, relabelled, shorter])
@pytest.mark.parametrize("part", ["train", "test"])
def test_another_content_is_another(change, part: str) -> None:  # type: ignore[no-untyped-def]
    first = data()
    other = replace(first, **{part: change(getattr(first, part))})
    assert data_identity(other) != data_identity(first)


def test_so_is_another_size_of_the_pool() -> None:
    assert data_identity(replace(data(), pool_size=11)) != data_identity(data())
