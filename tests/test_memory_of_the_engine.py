"""Appendix A.3.1: what is kept for backward does not grow with the inner or the solver's steps; unrolling does.

Counted by saved-tensor hooks, so on any device: bytes alive at once, a storage saved twice counted once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.theory.measure import outer_step, unroll, vgg_loss
from ibau_defense import L2Ball, MultiStart, UniversalLoss, ascend, ascend_from_many, value_and_gradients
from ibau_defense.ascent import Ascent
from ibau_defense.implicit import Response, response_product
from ibau_defense.saved import most_saved
from ibau_defense.solvers import FixedPoint
from ibau_defense.starts import survey_windows


@pytest.fixture(scope="module")
def loss() -> UniversalLoss:
    return vgg_loss()


@pytest.fixture(scope="module")
def one_gradient(loss: UniversalLoss) -> int:
    """Bytes one ∇H keeps, of δ and θ."""
    delta = torch.zeros(3, 16, 16)
    return most_saved(lambda: value_and_gradients(loss, delta, loss.network.theta, wrt_theta=True))


def test_the_ascent_keeps_one_gradient_however_many_steps(loss: UniversalLoss, one_gradient: int) -> None:
    def climb(steps: int) -> int:
        settings, start = Ascent(steps, 0.1, "normalised"), torch.zeros(3, 16, 16)
        return most_saved(lambda: ascend([loss], loss.network.theta, start, L2Ball(1.0), settings))

    assert climb(1) == climb(12) <= one_gradient


def test_many_starts_keep_one_gradient_of_their_batch(loss: UniversalLoss, one_gradient: int) -> None:
    def climb(steps: int) -> int:
        settings = MultiStart(images=4, steps=steps)
        windows = survey_windows(settings, loss.images.shape[1:])[:4]

        def draw(count: int) -> tuple[Tensor, Tensor]:
            return loss.images[:count], loss.labels[:count]

        return most_saved(
            lambda: ascend_from_many(
                loss.network, draw, loss.images.shape[1:], loss.network.theta, L2Ball(1.0), settings, windows
            )
        )

    assert climb(1) == climb(8) <= 1.1 * one_gradient


@pytest.mark.parametrize("mixed", ["exact", "directional"])
def test_the_solve_keeps_the_same_however_many_steps(loss: UniversalLoss, one_gradient: int, mixed: str) -> None:
    def solve(steps: int) -> int:
        kind: Any = mixed
        solver = FixedPoint(max_steps=steps, step=0.1, rtol=0.0)
        response = Response(solver, curvature=kind, mixed=kind)
        v = torch.ones(3, 16, 16)
        return most_saved(lambda: response_product(loss, 0.1 * v, loss.network.theta, v, response))

    few, many = solve(1), solve(10)
    assert few == many
    assert many <= (2.0 if mixed == "exact" else 1.0) * one_gradient


def test_unrolling_grows_linearly(loss: UniversalLoss, one_gradient: int) -> None:
    """The alternative: differentiate through T recorded ascent steps."""

    two, four, eight = (most_saved(lambda t=steps: unroll(loss, t)) for steps in (2, 4, 8))
    assert (eight - four) == pytest.approx(2 * (four - two), rel=0.1)
    assert eight > 8 * one_gradient


def test_a_whole_outer_step_stays_within_twice_one_gradient(loss: UniversalLoss, one_gradient: int) -> None:
    short, long, many = (most_saved(lambda t=t, k=k: outer_step(loss, t, k)) for t, k in ((1, 1), (9, 1), (1, 9)))
    assert short == long == many <= 2 * one_gradient


def test_the_ledger_counts_a_storage_once_and_lets_go() -> None:
    x = torch.ones(100, requires_grad=True)
    assert most_saved(lambda: (x * x).sum()) == 400  # both factors are one storage
    assert most_saved(lambda: [None for _ in range(5) if (x * x).sum() is None]) == 400  # one graph after the other
    chain = most_saved(lambda: x.sin().sin().sin())
    assert chain == 3 * 400  # each keeps its own argument
    assert most_saved(lambda: None) == 0
