"""``Durations``: how long jobs take, from those that finished, by families of jobs that cost the same."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import NamedTuple

CONTROL = "control"
"""The kind of cells without a defense: they take next to nothing, which says nothing of other cells."""


class Family(NamedTuple):
    kind: str
    name: str


class Durations:
    """Means of the seconds that finished jobs took. Kept as exact sums: a look costs the same after any number."""

    def __init__(self) -> None:
        self._families: dict[Family, _Mean] = defaultdict(_Mean)
        self._kinds: dict[str, _Mean] = defaultdict(_Mean)

    def add(self, family: Family, seconds: float) -> None:
        for mean in (self._families[family], self._kinds[family.kind]):
            mean.add(seconds)

    def seen(self, family: Family) -> bool:
        return family in self._families

    def mean(self, family: Family) -> float | None:
        """Of the family; of all jobs of its kind if none of it has finished; None if none of those has either.

        A control then counts like other cells, but never stands for them.
        """
        found = self._families.get(family) or self._kinds.get(family.kind)
        if found is None and family.kind == CONTROL:
            found = self._kinds.get("cell")
        return found.value if found else None


class _Mean:
    """Of finite numbers; ``value`` is their exact sum, rounded, by their number: it depends on no order."""

    def __init__(self) -> None:
        self._total = Fraction(0)
        self._count = 0
        self.value = 0.0

    def add(self, number: float) -> None:
        self._total += Fraction(number)
        self._count += 1
        self.value = float(self._total) / self._count
