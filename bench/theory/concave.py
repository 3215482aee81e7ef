"""Strongly concave inner problems with a known maximiser: where Theorem 1 holds and its error can be measured."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ibau_defense import FunctionObjective, Response, response_product, value_and_gradients
from ibau_defense.bounds import HypergradientConstants
from ibau_defense.objective import Theta
from ibau_defense.solvers import Dense, FixedPoint


class Problem(NamedTuple):
    """G and E, θ, the exact maximiser and Theorem 1's constants."""

    inner: FunctionObjective
    outer: FunctionObjective
    theta: Theta
    maximiser: Tensor
    constants: HypergradientConstants


def quadratic(seed: int, size: int = 5, parameters: int = 3, condition: float = 10.0) -> Problem:
    """G = −½ δᵀA(θ)δ + δᵀBθ, with A(θ) = A₀ + θ₁A₁ so that the mixed derivative depends on δ; E another quadratic.

    float64; the constants are closed forms. A₀ has eigenvalues from 1 to ``condition``.
    """
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
        found: Tensor = -0.5 * delta @ hessian @ delta + delta @ lever @ theta[0]
        return found

    def outer(delta: Tensor, theta: Theta) -> Tensor:
        away = delta - target
        found: Tensor = 0.5 * away @ bend @ away + delta @ cross @ theta[0] + theta[0].square().sum()
        return found

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


def exact_hypergradient(problem: Problem) -> Tensor:
    """∇ψ(θ): equation (2) at the maximiser, its system solved by factorisation."""
    return hypergradient(problem, problem.maximiser, Response(Dense()))


def implicit_error(problem: Problem, inner_steps: int, solver_steps: int | None) -> float:
    """‖∇ψ̃ − ∇ψ‖₂ of Algorithm 1 after T = ``inner_steps`` and K = ``solver_steps`` fixed-point steps.

    None for a system that is solved by factorisation.
    """
    step = problem.constants.alpha
    solver = Dense() if solver_steps is None else FixedPoint(max_steps=solver_steps, step=step, rtol=0.0)
    found = hypergradient(problem, climbed(problem, inner_steps), Response(solver))
    return float((found - exact_hypergradient(problem)).norm())


def unrolled_error(problem: Problem, inner_steps: int) -> float:
    """The same of differentiating through T recorded steps from δ = 0."""
    theta = problem.theta[0].detach().clone().requires_grad_(True)
    delta = torch.zeros_like(problem.maximiser, requires_grad=True)
    point = delta
    for _ in range(inner_steps):
        (gradient,) = torch.autograd.grad(problem.inner(point, (theta,)), point, create_graph=True)
        point = point + problem.constants.alpha * gradient
    (found,) = torch.autograd.grad(problem.outer(point, (theta,)), theta)
    return float((found - exact_hypergradient(problem)).norm())
