"""Theorem 1: the measured error of Algorithm 1's hypergradient lies under its bound on strongly concave problems."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ibau_defense import FunctionObjective, Response
from ibau_defense.bounds import HypergradientConstants, hypergradient_constants
from ibau_defense.implicit import response_product
from ibau_defense.objective import Theta, value_and_gradients
from ibau_defense.solvers import Dense, FixedPoint


class Problem(NamedTuple):
    """G and E, θ, the exact maximiser and Theorem 1's constants."""

    inner: FunctionObjective
    outer: FunctionObjective
    theta: Theta
    maximiser: Tensor
    constants: HypergradientConstants


def quadratic(seed: int, size: int = 5, parameters: int = 3, condition: float = 10.0) -> Problem:
    """G = −½ δᵀA(θ)δ + δᵀBθ, with A(θ) = A₀ + θ₁A₁ so that the mixed derivative depends on δ; E another quadratic."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(draw(size, size)).Q
    base = basis @ torch.diag(torch.linspace(1, condition, size, dtype=torch.float64)) @ basis.T
    tilt = draw(size, size)
    tilt = 0.1 * (tilt + tilt.T) / torch.linalg.matrix_norm(tilt + tilt.T, 2)
    lever, target, cross = draw(size, parameters), draw(size), draw(size, parameters)
    bend = draw(size, size)
    bend = bend @ bend.T
    theta = (draw(parameters).clamp(-2, 2),)

    def inner(delta: Tensor, theta: Theta) -> Tensor:
        hessian = base + theta[0][0] * tilt
        return -0.5 * delta @ hessian @ delta + delta @ lever @ theta[0]

    def outer(delta: Tensor, theta: Theta) -> Tensor:
        away = delta - target
        return 0.5 * away @ bend @ away + delta @ cross @ theta[0] + theta[0].square().sum()

    hessian = base + theta[0][0] * tilt
    maximiser = torch.linalg.solve(hessian, lever @ theta[0])
    eigenvalues = torch.linalg.eigvalsh(hessian)
    radius = float(maximiser.norm())
    pull = bend @ (maximiser - target) + cross @ theta[0]
    steepest = float(torch.linalg.matrix_norm(bend, 2))
    mixed = lever.clone()
    mixed[:, 0] -= tilt @ maximiser
    constants = HypergradientConstants(
        strong_concavity=float(eigenvalues.min()),
        smoothness=float(eigenvalues.max()),
        mixed=float(torch.linalg.matrix_norm(mixed, 2)),
        curvature_lipschitz=0.0,
        mixed_lipschitz=float(torch.linalg.matrix_norm(tilt, 2)),
        outer_gradient=float(pull.norm()) + steepest * radius,
        outer_lipschitz_delta=steepest,
        outer_lipschitz_theta=float(torch.linalg.matrix_norm(cross, 2)),
        radius=radius,
    )
    return Problem(FunctionObjective(inner), FunctionObjective(outer), theta, maximiser, constants)


def climbed(problem: Problem, steps: int) -> Tensor:
    """δ_t: ``steps`` plain gradient steps from zero."""
    delta = torch.zeros_like(problem.maximiser)
    for _ in range(steps):
        _, gradient, _ = value_and_gradients(problem.inner, delta, problem.theta)
        assert gradient is not None
        delta = delta + problem.constants.alpha * gradient
    return delta


def hypergradient(problem: Problem, delta: Tensor, response: Response) -> Tensor:
    """Equation (2) at δ."""
    _, pull, direct = value_and_gradients(problem.outer, delta, problem.theta, wrt_theta=True)
    assert pull is not None
    assert direct is not None
    moved, _ = response_product(problem.inner, delta, problem.theta, pull, response)
    return direct[0] + moved[0]


def error(problem: Problem, inner_steps: int, solver_steps: int) -> float:
    exact = hypergradient(problem, problem.maximiser, Response(Dense()))
    solver = FixedPoint(max_steps=solver_steps, step=problem.constants.alpha, rtol=0.0)
    found = hypergradient(problem, climbed(problem, inner_steps), Response(solver))
    return float((found - exact).norm())


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 60), solver_steps=st.integers(1, 60))
def test_the_error_of_random_quadratics_is_under_the_bound(seed: int, steps: int, solver_steps: int) -> None:
    problem = quadratic(seed)
    bound = problem.constants.bound(steps, solver_steps).total
    assert error(problem, steps, solver_steps) <= bound * (1 + 1e-9) + 1e-12 * problem.constants.c3  # rounding


@given(seed=st.integers(0, 10_000))
def test_error_and_bound_vanish_together(seed: int) -> None:
    problem = quadratic(seed, condition=4.0)
    bounds = [problem.constants.bound(steps).total for steps in (5, 10, 20, 40, 80)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 1e-6 * bounds[0]
    assert error(problem, 80, 80) < 1e-10 * max(1.0, bounds[0])


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
    assert error(problem, steps, steps) <= sound.bound(steps).total * (1 + 1e-9) + 1e-12 * sound.c3  # rounding


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


def test_a_problem_the_theorem_does_not_cover_is_refused() -> None:
    sound = HypergradientConstants(1, 3, 2, 0.5, 0.25, 4, 0.75, 0.3, 10)
    with pytest.raises(ValueError, match=r"strong_concavity: found -0\.1"):
        replace(sound, strong_concavity=-0.1)
    with pytest.raises(ValueError, match=r"step: found 0\.7; expected under 0\.66"):
        replace(sound, step=0.7)
