"""The outlier test of the trigger-synthesis defenses: median absolute deviation (MAD)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CONSISTENCY = 1.4826
"""Makes the MAD of normally distributed values an estimate of their standard deviation."""


class Outliers(NamedTuple):
    """``indices``: (K,) float64 >= 0, |score - median| / MAD, infinite where the MAD is 0 and the score is not the
    median. ``flagged``: the classes, ascending, whose score lies below the median with an index above the threshold.
    ``median`` and ``spread`` (1.4826 MAD): in the scores' unit.
    """

    indices: Tensor
    flagged: tuple[int, ...]
    median: float
    spread: float

    def index_of(self, score: float) -> float:
        """The index of ``score`` among these, were it one of them and changed neither their median nor their MAD.

        Scores that cannot fall below some value, as norms cannot below 0, have no index above that value's: where the
        MAD is more than 0.34 of the median, a norm of 0 has one below 2, and no class can be flagged at all.
        """
        return float(_indices(torch.tensor(abs(score - self.median), dtype=torch.float64), self.spread))


def low_outliers(scores: Tensor, threshold: float) -> Outliers:
    """Anomaly indices of one score a class; only scores below the median are suspects (Wang et al. 2019, Section IV-C).

    Args:
        scores: (K,) float, finite, K >= 1; small means that little suffices to reach the class.
        threshold: index above which a class is flagged; 2 leaves a normally distributed score with a probability of
            less than 5 %.
    """
    if scores.ndim != 1 or len(scores) == 0 or not bool(scores.isfinite().all()):
        raise ValueError(f"expected one finite score a class, found {scores.tolist()}")
    values = scores.detach().to(device="cpu", dtype=torch.float64)
    median = values.quantile(0.5)
    deviations = (values - median).abs()
    spread = CONSISTENCY * deviations.quantile(0.5)
    indices = _indices(deviations, spread)
    suspects = ((values < median) & (indices > threshold)).nonzero().flatten()
    return Outliers(indices, tuple(int(label) for label in suspects), float(median), float(spread))


def _indices(deviations: Tensor, spread: Tensor | float) -> Tensor:
    return torch.where(deviations == 0, 0.0, deviations / spread)
