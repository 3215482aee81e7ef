"""Confidence intervals of proportions. All are 95 %; numbers in [0, 1]."""

from __future__ import annotations

import math

Interval = tuple[float, float]

Z = 1.959963984540054
"""The standard normal quantile of 0.975."""


def wilson(share: float, count: float) -> Interval:
    """Wilson's score interval of a share observed on ``count`` images (Wilson, 1927)."""
    if count <= 0:
        raise ValueError(f"expected at least one image, found {count}")
    shrink = 1 + Z * Z / count
    centre = (share + Z * Z / (2 * count)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def newcombe(first: float, first_count: float, second: float, second_count: float) -> Interval:
    """Interval of ``first - second``, two independent shares (Newcombe, 1998, method 10: from Wilson's limits)."""
    low1, high1 = wilson(first, first_count)
    low2, high2 = wilson(second, second_count)
    difference = first - second
    return (
        max(-1.0, difference - math.hypot(first - low1, high2 - second)),
        min(1.0, difference + math.hypot(high1 - first, second - low2)),
    )


def absolute(interval: Interval) -> Interval:
    """The interval of |x| for x in ``interval``."""
    low, high = interval
    if low <= 0 <= high:
        return 0.0, max(-low, high)
    return min(abs(low), abs(high)), max(abs(low), abs(high))
