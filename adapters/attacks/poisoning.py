"""Poisoning a training set through ART's ``PoisoningAttackBackdoor``.

What is ours is the choice of images; the toolkit stamps them and relabels them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.attacks.conduct import check_range
from adapters.attacks.label_maps import CleanLabel, carriers, prepared
from adapters.errors import UserError
from adapters.protocols import LabelledImages, LabelMap, Trigger

_BATCH = 2048
RATIO_KEY = "cell.poison_ratio"


class PoisonedSet(NamedTuple):
    """A poisoned training set of R examples.

    ``images``: (M, C, H, W) uint8, each stored once; ``rows``: (R,) int64, which of them each example shows;
    ``labels``: (R,) int64; ``indices``: (P,) int64, ascending, the poisoned examples; ``source``: (P,) int64, which of
    the attacks each of them carries. Everything else is as it was.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    source: Tensor
    rows: Tensor


def poison_count(labels: Tensor, maps: LabelMap | Sequence[LabelMap], ratio: float, key: str = RATIO_KEY) -> int:
    """How many images each attack poisons: ``round(ratio * N)``, a share of the whole training set.

    With several attacks ``ratio`` is the share of each, and no image carries two. Raises ``UserError`` saying
    what is attainable if that is no image at all, or more than can be poisoned.

    Args:
        labels: (N,) int64 training labels.
        maps: the attack's label map, or one for each attack.
    """
    maps = list(maps) if isinstance(maps, Sequence) else [maps]
    total, count = len(labels), round(ratio * len(labels))
    # Each attack draws from what the others left: enough remains for the last one if all together take no more
    # than the scarcest has.
    available = min(int(carriers(one, labels).sum()) for one in maps)
    most = available // len(maps)
    if count > most:
        each = f" for each of {len(maps)} triggers, no image carrying two" if len(maps) > 1 else ""
        raise UserError(
            f"{key}: found {ratio:g}, {count} of {total} training images; expected at most"
            f" {_floor(most / total) if total else 0:g}{each} ({available} images {_which(maps)})"
        )
    if count < 1:
        raise UserError(
            f"{key}: found {ratio:g}, less than one of {total} training images; expected at least {1 / total:.2g}"
        )
    return count


def poison(
    train: LabelledImages,
    attacks: Sequence[tuple[Trigger, LabelMap]],
    ratio: float,
    seed: int,
    key: str = RATIO_KEY,
) -> PoisonedSet:
    """Poison ``round(ratio * N)`` images for each of ``attacks``, drawn by ``seed`` from those it can poison.

    Everything happens on the CPU: a seed gives the same set whatever trains on it. A larger ratio poisons the
    images of a smaller one and more (with one attack).

    Args:
        train: uint8 images and their labels; left as they are.
    """
    count = poison_count(train.labels, [one for _, one in attacks], ratio, key)
    images, labels = train.images.clone(), train.labels.clone()
    generator = torch.Generator().manual_seed(seed)
    free = torch.ones(len(labels), dtype=torch.bool)
    chosen = []
    for trigger, mapping in attacks:
        order = torch.randperm(len(labels), generator=generator)
        candidates = order[(free & carriers(mapping, train.labels))[order]]
        indices = candidates[:count].sort().values
        free[indices] = False
        chosen.append(indices)
        for batch in torch.split(indices, _BATCH):
            images[batch], labels[batch] = _poison_batch(trigger, mapping, train.images[batch], train.labels[batch])
    indices = torch.cat(chosen)
    source = torch.arange(len(attacks)).repeat_interleave(count)
    order = indices.argsort()
    return PoisonedSet(images, labels, indices[order], source[order], torch.arange(len(labels)))


def poison_copies(
    train: LabelledImages,
    attacks: Sequence[tuple[Trigger, LabelMap]],
    ratio: float,
    seed: int,
    key: str = RATIO_KEY,
) -> PoisonedSet:
    """A poisoned copy of the training set for each of T attacks, ``round(ratio * N)`` images of it, united.

    The paper's setting for several triggers (Section 6, Table 3): T * N examples, the first copy's first. The copies
    are not held: what no trigger changed is stored once, so M = N + T * round(ratio * N).
    """
    counts = {poison_count(train.labels, one, ratio, key) for _, one in attacks}
    (count,) = counts  # the same share of the same set
    total, copies = len(train.labels), len(attacks)
    images = torch.cat([train.images, train.images.new_empty(copies * count, *train.images.shape[1:])])
    labels, rows = train.labels.repeat(copies), torch.arange(total).repeat(copies)
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for copy, (trigger, mapping) in enumerate(attacks):
        order = torch.randperm(total, generator=generator)
        indices = order[carriers(mapping, train.labels)[order]][:count].sort().values
        stored = total + copy * count + torch.arange(count)
        for place, batch in zip(stored.split(_BATCH), indices.split(_BATCH), strict=True):
            images[place], targets = _poison_batch(trigger, mapping, train.images[batch], train.labels[batch])
            labels[copy * total + batch] = targets
        rows[copy * total + indices] = stored
        chosen.append(copy * total + indices)
    return PoisonedSet(images, labels, torch.cat(chosen), torch.arange(copies).repeat_interleave(count), rows)


def _which(maps: Sequence[LabelMap]) -> str:
    return (
        "are of the target class" if any(isinstance(one, CleanLabel) for one in maps) else "are not of the target class"
    )


def _poison_batch(trigger: Trigger, mapping: LabelMap, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """ART's engine on uint8 images (n, C, H, W) and their labels (n,); rounds to the nearest level."""
    from art.attacks.poisoning import PoisoningAttackBackdoor  # takes seconds to import

    def perturb(batch: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        return trigger(torch.from_numpy(batch)).numpy()

    inputs = prepared(mapping, images, labels).to(torch.float32).div_(255).numpy()
    poisoned, targets = PoisoningAttackBackdoor(perturb).poison(inputs, mapping(labels).numpy())
    check_range(torch.from_numpy(poisoned), trigger)
    return torch.from_numpy(poisoned).mul(255).round_().to(torch.uint8), torch.from_numpy(targets)


def _floor(share: float) -> float:
    """``share`` cut after four decimals: a figure to recommend must not be too large."""
    return int(share * 10_000) / 10_000
