"""The guard of the outer loop: what a step may cost the clean set, and how one that costs more is undone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ibau_defense.objective import Network
from ibau_defense.parallel import Ranks

MOST = 512
"""Held-back images in one pass."""


@dataclass(frozen=True)
class GuardSettings:
    """When outer steps are undone.

    Attributes:
        held_back: share of the clean set that the guard keeps for itself: never trained on.
        held_back_most: that many images at most.
        every: outer steps between two checks, and one at the end of each round; what is undone is all steps since the
            last good check, and they are taken again.
        loss_rise: undo where the held-back clean loss exceeds the victim's by more than this, in nats.
        accuracy_drop: undo where the held-back accuracy is under the victim's by more than this, in [0, 1].
        final_drop: likewise at the end of a run, and between in proportion to the outer rates to come, which could win
            accuracy back. Steps are not undone for this where they lost no accuracy themselves, or no more than one
            held-back image is lost in all. A run that ends with more than this lost says so: its status is
            ``diverged``.
        shrink: factor on the outer rate after an undo; ``Guard.rate`` is their product.
        retries: undos in a row after which the run gives up with what it has at the next.
    """

    held_back: float = 0.1
    held_back_most: int = 256
    every: int = 5
    loss_rise: float = 0.5
    accuracy_drop: float = 0.05
    final_drop: float = 0.1
    shrink: float = 0.5
    retries: int = 4


class Verdict(NamedTuple):
    """Clean loss and accuracy on the held-back images, and whether they are within the tolerance."""

    loss: float
    accuracy: float
    sound: bool


class Guard:
    """Watches the working network on held-back clean images and restores it to its last sound state.

    Args:
        images, labels: the held-back clean images, (m, C, H, W) and (m,); m ≥ 1.
        micro_batch: most of them in one pass, and never more than ``MOST``.
        ranks: processes that share them: all find the same loss, hence undo the same steps.
    """

    def __init__(
        self,
        settings: GuardSettings,
        network: Network,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
        ranks: Ranks | None = None,
        *,
        micro_batch: int | None = None,
    ) -> None:
        self.ranks = ranks
        self._most = min(micro_batch or MOST, MOST)
        self.settings, self.network, self.optimizer = settings, network, optimizer
        self.images, self.labels = images, labels
        self.undone, self.rate = 0, 1.0
        self._failures = 0
        loss, accuracy = self._measure()
        self.before = Verdict(loss, accuracy, sound=True)
        self._kept_accuracy = accuracy
        self._keep()

    @property
    def lost(self) -> float:
        """Held-back accuracy that the kept state has lost since the start, in [-1, 1]."""
        return self.before.accuracy - self._kept_accuracy

    @property
    def lost_too_much(self) -> bool:
        """Whether that is more than ``final_drop`` and more than one image, which of a small set is noise."""
        return self._too_much(self.lost, self.settings.final_drop)

    def _too_much(self, lost: float, allowed: float) -> bool:
        return lost > allowed and lost * len(self.labels) > 1.5

    @property
    def exhausted(self) -> bool:
        return self._failures > self.settings.retries

    def check(self, to_come: float = 1.0) -> Verdict:
        """Measure; a sound state is kept, an unsound one undone and the outer rate made smaller.

        Args:
            to_come: share of a run's outer rates, in [0, 1], that steps after this check have.
        """
        loss, accuracy = self._measure()
        bound, before = self.settings, self.before
        # Written so that NaN is unsound.
        sound = loss <= before.loss + bound.loss_rise and accuracy >= before.accuracy - bound.accuracy_drop
        allowed = bound.final_drop + to_come * (bound.accuracy_drop - bound.final_drop)
        if accuracy < self._kept_accuracy and self._too_much(before.accuracy - accuracy, allowed):
            sound = False
        if sound:
            self._failures, self._kept_accuracy = 0, accuracy
            self._keep()
        else:
            self._restore()
            self.undone, self._failures = self.undone + 1, self._failures + 1
            self.rate *= self.settings.shrink
        return Verdict(loss, accuracy, sound)

    @torch.no_grad()
    def _measure(self) -> tuple[float, float]:
        """Clean loss and accuracy on the held-back images."""
        theta = self.network.theta
        loss, hits = torch.zeros((), device=self.images.device), torch.zeros((), device=self.images.device)
        own = slice(None) if self.ranks is None else self.ranks.share(len(self.labels))
        for images, labels in zip(self.images[own].split(self._most), self.labels[own].split(self._most), strict=True):
            if len(labels) == 0:  # this rank's share of a very small set
                continue
            logits = self.network(images, theta)
            loss = loss + F.cross_entropy(logits, labels, reduction="sum")
            hits = hits + (logits.argmax(dim=1) == labels).sum()
        sums = torch.stack([loss, hits])
        if self.ranks is not None:
            sums = self.ranks.sum([sums])[0]
        value, accuracy = (sums / len(self.labels)).tolist()
        return value, accuracy

    def _keep(self) -> None:
        self._state = [parameter.detach().clone() for parameter in self.network.parameters]
        self._optimizer_state: dict[str, Any] = copy.deepcopy(self.optimizer.state_dict()["state"])

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter, kept in zip(self.network.parameters, self._state, strict=True):
            parameter.copy_(kept)
        tree = self.optimizer.state_dict()
        tree["state"] = copy.deepcopy(self._optimizer_state)
        self.optimizer.load_state_dict(tree)


def hold_back(settings: GuardSettings, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(kept, held): a random split of the indices of a clean set; at least one image on either side.

    With one image in all, both sides are that image: a guard that watches what it trains on beats none.
    """
    count = len(labels)
    order = torch.randperm(count, generator=generator)
    wanted = min(round(settings.held_back * count), settings.held_back_most)
    held = min(max(1, wanted), max(1, count - 1))
    if count == 1:
        return order, order
    return order[held:].sort().values, order[:held].sort().values
