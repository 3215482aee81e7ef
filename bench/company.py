"""``Company``: how many others ran beside each that runs, in the same place."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict


class Company:
    """By key: the largest number of others that ran in its place at any time from its start to its end.

    A place is whatever the caller calls one: a device of a machine. One that is started again elsewhere without having
    ended has left its first place; what counts is the last.
    """

    def __init__(self) -> None:
        self._places: dict[str, _Place] = defaultdict(_Place)
        self._where: dict[str, str] = {}

    def started(self, key: str, place: str = "") -> None:
        if self._where.get(key, place) != place:
            self.ended(key)
        self._where[key] = place
        self._places[place].started(key)

    def ended(self, key: str) -> None:
        """``key`` runs no longer; one that did not run is let pass."""
        if key in self._where:
            self._places[self._where[key]].ended(key)

    def most(self, key: str) -> int:
        """Of one that still runs, until now; 0 for one that never ran."""
        return self._places[self._where[key]].most(key) if key in self._where else 0


class _Place:
    """The same for one place.

    The number that run rises with a start alone, so the largest is that just after one of the starts since a key's
    own. Of these only those are kept that no later one reaches: at most as many as ran at once. A start costs the same
    however many run, over a sweep; a look is a bisection.
    """

    def __init__(self) -> None:
        self._running: dict[str, int] = {}
        """The number of each one's start, counted from 0."""
        self._ended: dict[str, int] = {}
        self._starts: list[int] = []
        self._levels: list[int] = []
        """How many ran just after each of ``_starts``: ever fewer."""
        self._count = 0

    def started(self, key: str) -> None:
        """``key`` runs, or is started again without having ended, in which case it has run since its first start."""
        self._running.setdefault(key, self._count)
        level = len(self._running)
        while self._levels and self._levels[-1] <= level:
            self._levels.pop()
            self._starts.pop()
        self._levels.append(level)
        self._starts.append(self._count)
        self._count += 1

    def ended(self, key: str) -> None:
        """``key`` runs no longer; one that did not run is let pass."""
        if key in self._running:
            self._ended[key] = self.most(key)
            del self._running[key]

    def most(self, key: str) -> int:
        """Of one that still runs, until now; 0 for one that never ran."""
        before = self._ended.get(key, 0)
        if key not in self._running:
            return before
        return max(before, self._levels[bisect_left(self._starts, self._running[key])] - 1)
