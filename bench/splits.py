"""Test images are split once, by seed, into the defender's pool and the scoring set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adapters.errors import UserError
from adapters.protocols import ImageTensors


class Split(NamedTuple):
    """Two disjoint sets of test images, together all of them.

    ``pool_indices``: (pool_size,) int64 in the order in which clean sets are drawn: the clean set of size n is
    the first n. ``scoring_indices``: int64, ascending.
    """

    pool_indices: Tensor
    scoring_indices: Tensor


def split_test(data: ImageTensors, seed: int) -> Split:
    """Split ``data.test`` by ``seed``: ``data.pool_size`` images to the defender, the rest to scoring.

    Both parts hold each class in proportion, to within one image. The pool is ordered so that each of its
    prefixes is a stratified random draw: the first images are one of each class, in random order, and from
    there on every class advances in proportion to its share of the pool. Clean sets of growing size are thus
    nested, and one of at least as many images as there are classes has every class of the pool.
    """
    labels = data.test.labels
    if not 0 < data.pool_size < len(labels):
        raise UserError(
            f"cell.dataset: {data.name!r} has {len(labels)} test images; expected more than the {data.pool_size}"
            " (and that at least 1) that go to the defender's pool"
        )
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    ordered = shuffled[labels[shuffled].argsort(stable=True)]  # by class, shuffled within each
    sizes = torch.bincount(labels, minlength=data.num_classes)
    quotas = _quotas(sizes, data.pool_size, generator)
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[ordered]]  # rank within the class
    in_pool = place < quotas[labels[ordered]]
    pool, place = ordered[in_pool], place[in_pool]
    order = _draw_order(labels[pool], place, quotas, generator)
    return Split(pool[order], ordered[~in_pool].sort().values)


def check_clean_size(pool_size: int, size: int, key: str = "cell.clean_size") -> None:
    """Raise ``UserError`` unless a clean set of ``size`` images can be drawn from a pool of ``pool_size``."""
    if not 1 <= size <= pool_size:
        raise UserError(
            f"{key}: found {size}; expected at least 1 and at most {pool_size}, the images in the defender's pool"
        )


def clean_indices(split: Split, size: int, key: str = "cell.clean_size") -> Tensor:
    """(size,) int64: the test images the defender holds. Clean sets of one split are nested."""
    check_clean_size(len(split.pool_indices), size, key)
    return split.pool_indices[:size]


def _quotas(sizes: Tensor, total: int, generator: torch.Generator) -> Tensor:
    """How many of each class go to the pool: proportional, rounded by largest remainder, ties drawn. (C,) int64."""
    exact = sizes * total  # in units of 1 / sizes.sum(): integers, so no rounding error decides
    quotas, rest = exact // sizes.sum(), exact % sizes.sum()
    ties = torch.randperm(len(sizes), generator=generator)
    winners = ties[rest[ties].argsort(descending=True, stable=True)][: total - int(quotas.sum())]
    quotas[winners] += 1
    return quotas


def _draw_order(labels: Tensor, place: Tensor, quotas: Tensor, generator: torch.Generator) -> Tensor:
    """The order in which pool images enter clean sets. ``place``: rank within the class, from 0.

    Image ``place`` of a class is due at (place + u) / quota, u uniform for each class; the first of each class
    is due at once. This is systematic sampling: every prefix has each class in proportion to within one image.
    """
    start = torch.rand(len(quotas), generator=generator, dtype=torch.float64)
    due = (place + start[labels]) / quotas[labels]
    due = torch.where(place == 0, start[labels] - 1, due)
    return due.argsort(stable=True)
