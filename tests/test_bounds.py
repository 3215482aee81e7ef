"""Theorem 1: the measured error of Algorithm 1's hypergradient lies under its bound on strongly concave problems."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.theory.concave import Problem, implicit_error, quadratic, unrolled_error
from ibau_defense import FunctionObjective
from ibau_defense.bounds import HypergradientConstants, hypergradient_constants


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 60), solver_steps=st.integers(1, 60))
def test_the_error_of_random_quadratics_is_under_the_bound(seed: int, steps: int, solver_steps: int) -> None:
    problem = quadratic(seed)
    bound = problem.constants.bound(steps, solver_steps).total
    assert implicit_error(problem, steps, solver_steps) <= bound * (1 + 1e-9) + 1e-12 * problem.constants.c3  # rounding


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 60))
def test_the_error_is_under_the_bound_of_estimated_constants(seed: int, steps: int) -> None:
    problem = quadratic(seed)
    start = torch.zeros_like(problem.maximiser)
    found = hypergradient_constants(problem.inner, problem.outer, problem.theta, problem.maximiser, points=[start])
    assert implicit_error(problem, steps, steps) <= found.bound(steps).total * (1 + 1e-9) + 1e-12 * found.c3  # rounding


@given(seed=st.integers(0, 10_000))
def test_error_and_bound_vanish_together(seed: int) -> None:
    problem = quadratic(seed, condition=4.0)
    bounds = [problem.constants.bound(steps).total for steps in (5, 10, 20, 40, 80)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 1e-6 * bounds[0]
    for error in (implicit_error(problem, 80, 80), implicit_error(problem, 80, None), unrolled_error(problem, 80)):
        assert error < 1e-10 * max(1.0, bounds[0])


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 40))
def test_a_problem_that_is_not_quadratic(seed: int, steps: int) -> None:
    """Curvature that depends on δ: G = ⟨δ, Bθ⟩ − ½‖δ‖² − Σ log cosh δ, with ρ̂₁ ≤ max |tanh''| < 0.7699."""
    generator = torch.Generator().manual_seed(seed)
    lever, start = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    theta = (start[0],)
    inner = FunctionObjective(
        lambda delta, theta: delta @ lever @ theta[0] - 0.5 * delta.square().sum() - delta.cosh().log().sum()
    )
    outer = FunctionObjective(lambda delta, theta: 0.5 * (delta - start[1]).square().sum() + theta[0].sum())
    maximiser = torch.zeros(4, dtype=torch.float64)
    for _ in range(400):
        maximiser = maximiser + 2 / 3 * (lever @ theta[0] - maximiser - maximiser.tanh())
    found = hypergradient_constants(inner, outer, theta, maximiser, points=[torch.zeros_like(maximiser)])
    sound = replace(found, strong_concavity=1.0, smoothness=2.0, curvature_lipschitz=0.77)
    assert found.strong_concavity >= 1
    assert found.smoothness <= 2
    assert found.curvature_lipschitz <= 0.77
    problem = Problem(inner, outer, theta, maximiser, sound)
    assert implicit_error(problem, steps, steps) <= sound.bound(steps).total * (1 + 1e-9) + 1e-12 * sound.c3  # rounding


def test_constants_of_a_quadratic_are_found_exactly() -> None:
    problem = quadratic(3)
    found = hypergradient_constants(
        problem.inner, problem.outer, problem.theta, problem.maximiser, points=[torch.zeros(5, dtype=torch.float64)]
    )
    for name in ("strong_concavity", "smoothness", "outer_gradient", "outer_lipschitz_delta", "outer_lipschitz_theta"):
        assert getattr(found, name) == pytest.approx(getattr(problem.constants, name)), name
    assert found.mixed >= problem.constants.mixed * (1 - 1e-12)
    assert found.mixed_lipschitz <= problem.constants.mixed_lipschitz * (1 + 1e-9)
    assert found.curvature_lipschitz == pytest.approx(0, abs=1e-12)


@given(seed=st.integers(0, 10_000))
def test_the_mixed_derivative_of_a_quadratic_is_that_at_its_maximiser(seed: int) -> None:
    problem = quadratic(seed)
    found = hypergradient_constants(problem.inner, problem.outer, problem.theta, problem.maximiser)
    assert found.mixed == pytest.approx(problem.constants.mixed)


def test_the_terms_add_up_and_follow_the_printed_constants() -> None:
    constants = HypergradientConstants(1, 3, 2, 0.5, 0.25, 4, 0.75, 0.3, 10, step=0.5, step_gradient=0.1)
    q = constants.contraction
    assert q == 0.5
    assert constants.c1 == pytest.approx((0.3 + 0.75 * 2 * 0.5 / (1 - q)) * 10)
    assert constants.c2 == pytest.approx(4 * 10 * (3 * 0.1 + 0.25 * 0.5) + 0.5 * 4 * 2 * 10 * 0.5**2 / (1 - q))
    assert constants.c3 == pytest.approx(4 * 2 * 0.5 / (1 - q))
    bound = constants.bound(4)
    assert bound.total == pytest.approx(bound.inner + bound.linearisation + bound.truncation)
    assert bound.total == pytest.approx(
        (constants.c1 + constants.c2 * (1 - q**4) / (1 - q)) * q**4 + constants.c3 * q**4
    )
    assert constants.bound(math.inf, 4).total == pytest.approx(bound.truncation)  # type: ignore[arg-type]


def test_each_term_falls_with_its_own_steps() -> None:
    constants = HypergradientConstants(1, 3, 2, 0.5, 0.25, 4, 0.75, 0.3, 10, step=0.5)
    q, found = constants.contraction, constants.bound(3, 7)
    assert found.inner == pytest.approx(constants.c1 * q**3)
    assert found.linearisation == pytest.approx(constants.c2 * (1 - q**7) / (1 - q) * q**3)
    assert found.truncation == pytest.approx(constants.c3 * q**7)


def test_a_problem_the_theorem_does_not_cover_is_refused() -> None:
    sound = HypergradientConstants(1, 3, 2, 0.5, 0.25, 4, 0.75, 0.3, 10)
    with pytest.raises(ValueError, match=r"strong_concavity: found -0\.1"):
        replace(sound, strong_concavity=-0.1)
    with pytest.raises(ValueError, match=r"step: found 0\.7; expected under 0\.66"):
        replace(sound, step=0.7)
