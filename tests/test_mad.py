"""Outliers by median absolute deviation, against a hand computation and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation

from adapters.defenses.mad import low_outliers

SCORES = st.lists(st.integers(0, 1000).map(float), min_size=1, max_size=43)


def test_a_hand_computation() -> None:
    # Median 8; deviations 6, 1, 0, 1, 4, their median 1; a deviation of 6 is 6 / 1.4826 = 4.047 of them.
    found = low_outliers(torch.tensor([2.0, 7.0, 8.0, 9.0, 12.0]), 2.0)
    assert found.indices.tolist() == pytest.approx([6 / 1.4826, 1 / 1.4826, 0, 1 / 1.4826, 4 / 1.4826])
    assert found.flagged == (0,)  # 12 is as much of an outlier, but on the other side


def test_an_index_at_the_threshold_is_no_outlier() -> None:
    scores = torch.tensor([2.0, 7.0, 8.0, 9.0, 12.0])
    assert low_outliers(scores, float(low_outliers(scores, 2.0).indices[0])).flagged == ()


def test_an_even_number_of_scores_has_its_median_between_two() -> None:
    # Median 5; deviations 4, 1, 1, 5, their median 2.5.
    found = low_outliers(torch.tensor([1.0, 4.0, 6.0, 10.0]), 1.0)
    assert found.indices.tolist() == pytest.approx([4 / (1.4826 * 2.5), 1 / 3.7065, 1 / 3.7065, 5 / 3.7065])
    assert found.flagged == (0,)


def test_where_most_scores_are_equal_any_other_is_an_outlier() -> None:
    found = low_outliers(torch.tensor([3.0, 3.0, 2.9, 3.0, 3.1]), 2.0)
    assert found.indices.tolist() == [0, 0, float("inf"), 0, float("inf")]
    assert found.flagged == (2,)


def test_no_norm_is_an_outlier_among_norms_that_differ_by_factors_but_its_logarithm_is() -> None:
    # Median 60, deviations 59, 40, 30, 0, 30, 60, 100, their median 40: 0 itself would have (60 - 0) / (1.4826 * 40).
    norms = torch.tensor([1.0, 20, 30, 60, 90, 120, 160])
    found = low_outliers(norms, 2.0)
    assert found.flagged == ()
    assert found.index_of(0.0) == pytest.approx(60 / (1.4826 * 40))
    # Logarithms to base 2 of 1/60, 1/3, 1/2, 1, 3/2, 2, 8/3: the median deviation is that of 1/2 and of 2, 1.
    again = low_outliers(norms.log2(), 2.0)
    assert again.flagged == (0,)
    assert float(again.indices[0]) == pytest.approx(np.log2(60) / 1.4826, rel=1e-6)


@given(st.lists(st.integers(0, 1000).map(float), min_size=1, max_size=43), st.floats(0.1, 4))
def test_the_index_of_the_least_score_bounds_all_below_the_median(scores: list[float], threshold: float) -> None:
    found = low_outliers(torch.tensor(scores), threshold)
    bound = found.index_of(0.0)
    low = torch.tensor(scores, dtype=torch.float64) < found.median
    assert (found.indices[low] <= bound * (1 + 1e-12)).all()
    assert bound > threshold or found.flagged == ()
    for score, index in zip(scores, found.indices.tolist(), strict=True):
        assert found.index_of(score) == pytest.approx(index)


@given(SCORES)
def test_indices_are_scipys(scores: list[float]) -> None:
    spread = median_abs_deviation(scores, scale=1 / 1.4826)
    found = low_outliers(torch.tensor(scores), 2.0)
    if spread > 0:
        expected = np.abs(np.array(scores) - np.median(scores)) / spread
        np.testing.assert_allclose(found.indices.numpy(), expected, rtol=1e-9)


@given(SCORES, st.integers(1, 50), st.integers(-100, 100))
def test_unit_and_origin_of_the_scores_do_not_matter(scores: list[float], scale: int, shift: int) -> None:
    first = low_outliers(torch.tensor(scores), 2.0)
    again = low_outliers(torch.tensor(scores) * scale + shift, 2.0)
    assert again.flagged == first.flagged
    assert 2 * len(first.flagged) <= len(scores)  # a minority


@pytest.mark.parametrize("scores", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, float("nan")])])
def test_what_is_no_row_of_finite_scores_is_refused(scores: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected one finite score a class"):
        low_outliers(scores, 2.0)
