"""Neural Cleanse's dynamic weight on the size of a trigger, and when a class's search may stop; all classes at once."""

from __future__ import annotations

import torch
from torch import Tensor


class CostSchedule:
    """One weight a class, raised while the attack succeeds and lowered while it does not (Wang et al. 2019, Sec. V-A).

    A class starts at weight 0. After ``patience`` steps of success in a row it gets ``initial``; from then on
    ``patience`` successes in a row multiply it by ``factor``, as many failures divide it by ``factor``^1.5.
    A class is done when its weight has gone both ways and its smallest trigger has not shrunk by more than 1 % in the
    last ``early_stop`` steps of success together; None: never. (The authors' code compares each step with the one
    before, so that a trigger shrinking by a little less than its threshold at every step would be given up; its GTSRB
    example sets the threshold to no shrinking at all. It counts failures too: a class whose mask a weight raised too
    fast has emptied would be given up before it has recovered, with the large mask it had before.)
    """

    SHRINKS = 0.99

    def __init__(self, classes: int, initial: float, factor: float, patience: int, early_stop: int | None) -> None:
        self.weights = torch.zeros(classes)
        self.active = torch.ones(classes, dtype=torch.bool)
        self._initial, self._factor, self._patience, self._early_stop = initial, factor, patience, early_stop
        self._successes = torch.zeros(classes, dtype=torch.int64)
        self._failures = torch.zeros(classes, dtype=torch.int64)
        self._raised = torch.zeros(classes, dtype=torch.bool)
        self._lowered = torch.zeros(classes, dtype=torch.bool)
        self._smallest = torch.full((classes,), float("inf"))
        self._stuck = torch.zeros(classes, dtype=torch.int64)

    def update(self, success: Tensor, best: Tensor) -> None:
        """After a step. ``success``: (K,) bool; ``best``: (K,) smallest norm of a successful trigger so far, or inf."""
        moving = self.active
        self._successes = torch.where(success, self._successes + 1, 0)
        self._failures = torch.where(success, 0, self._failures + 1)
        started = self.weights > 0
        up, down = self._successes >= self._patience, self._failures >= self._patience
        start, up, down = moving & up & ~started, moving & up & started, moving & down & started
        self.weights = torch.where(start, self._initial, self.weights)
        self.weights = torch.where(up, self.weights * self._factor, self.weights)
        self.weights = torch.where(down, self.weights / self._factor**1.5, self.weights)
        self._successes[start | up] = 0
        self._failures[down] = 0
        self._raised |= up
        self._lowered |= down
        self._stop_early(success, best)

    def _stop_early(self, success: Tensor, best: Tensor) -> None:
        stuck = best >= self.SHRINKS * self._smallest
        self._stuck = torch.where(stuck, self._stuck + success, 0)
        self._smallest = torch.where(stuck, self._smallest, best)  # as it was when it last shrank
        if self._early_stop is not None:
            self.active = self.active & ~(self._raised & self._lowered & (self._stuck >= self._early_stop))
