"""What backward keeps: bytes of saved tensors, counted by autograd's own hooks, so on any device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Ledger:
    """Bytes of the storages that graphs hold now, a storage saved twice counted once, and the most they held."""

    def __init__(self) -> None:
        self.peak = 0
        self._now = 0
        self._users: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}

    def take(self, tensor: Tensor) -> int:
        """Note that a graph holds ``tensor``; the returned key is for ``drop``."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if self._users[key] == 0:
            self._sizes[key] = storage.nbytes()
            self._now += self._sizes[key]
        self._users[key] += 1
        self.peak = max(self.peak, self._now)
        return key

    def drop(self, key: int) -> None:
        """Note that a graph let go of it."""
        self._users[key] -= 1
        if self._users[key] == 0:
            self._now -= self._sizes.pop(key)


class _Held:
    def __init__(self, tensor: Tensor, ledger: Ledger) -> None:
        self.tensor, self.ledger, self.key = tensor, ledger, ledger.take(tensor)

    def __del__(self) -> None:
        self.ledger.drop(self.key)


def most_saved(work: Callable[[], Any]) -> int:
    """The most bytes alive at once in tensors saved for backward while ``work`` runs; parameters included."""
    ledger = Ledger()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Held(tensor, ledger), lambda held: held.tensor):
        work()
    return ledger.peak
