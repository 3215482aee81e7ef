"""Which label a triggered image is meant to get."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.errors import UserError
from adapters.protocols import LabelMap


@dataclass(frozen=True)
class AllToOne:
    """Every label becomes ``target``. Images of the target class are not poisonable."""

    target: int

    def __call__(self, labels: Tensor) -> Tensor:
        """(N,) int64 to (N,) int64."""
        return torch.full_like(labels, self.target)

    def is_poisonable(self, labels: Tensor) -> Tensor:
        """(N,) bool."""
        return labels != self.target


@dataclass(frozen=True)
class CleanLabel(AllToOne):
    """Images of the target class are poisoned and keep their label; a triggered image of another class is to get it."""

    def carriers(self, labels: Tensor) -> Tensor:
        """(N,) bool: the training images that may carry the trigger."""
        return labels == self.target


@dataclass(frozen=True)
class AllToAll:
    """Label i becomes i + 1, the last one 0."""

    num_classes: int

    def __call__(self, labels: Tensor) -> Tensor:
        """(N,) int64 to (N,) int64."""
        return (labels + 1) % self.num_classes

    def is_poisonable(self, labels: Tensor) -> Tensor:
        """(N,) bool: every image, unless there is one class only."""
        return torch.full_like(labels, self.num_classes > 1, dtype=torch.bool)


def carriers(mapping: LabelMap, labels: Tensor) -> Tensor:
    """(N,) bool: the training images that an attack may poison; those whose label it changes, unless it says so."""
    found: Tensor = getattr(mapping, "carriers", mapping.is_poisonable)(labels)
    return found


def prepared(mapping: LabelMap, images: Tensor, labels: Tensor) -> Tensor:
    """What the trigger is put on, (N, C, H, W) uint8: the images as they are, unless the map says otherwise."""
    prepare = getattr(mapping, "prepare", None)
    found: Tensor = images if prepare is None else prepare(images, labels)
    return found


def label_map(target: int | str, num_classes: int, key: str = "cell.target", clean_label: bool = False) -> LabelMap:
    """The map for ``target``, a label in [0, num_classes) or ``all_to_all``; ``UserError`` names ``key`` otherwise.

    ``clean_label``: poison images of the target class and leave their labels; all-to-all has no such class.
    """
    if target == "all_to_all" and clean_label:
        raise UserError(f"{key}: found 'all_to_all'; expected a label, for clean_label poisons images of one class")
    if target == "all_to_all":
        return AllToAll(num_classes)
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < num_classes:
        raise UserError(
            f"{key}: found {target!r}; expected a label from 0 to {num_classes - 1} (the data set has"
            f" {num_classes} classes) or all_to_all"
        )
    return CleanLabel(target) if clean_label else AllToOne(target)
