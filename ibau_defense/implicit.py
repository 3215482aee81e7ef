"""The response of an inner maximiser to the parameters, as an ordinary autograd Function."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ibau_defense.balls import Ball
from ibau_defense.curvature import CurvatureKind, MixedKind, check_kinds, linearise
from ibau_defense.objective import Objective, Theta
from ibau_defense.solvers import ConjugateGradient, Solution, Solver


@dataclass(frozen=True)
class Response:
    """How the backward pass of ``ImplicitArgmax`` forms and solves its system.

    Attributes:
        solver: for A w = v.
        curvature: how ∇²₁G is multiplied.
        mixed: how (∇²₁₂G)ᵀ is multiplied.
        ball: None for an unconstrained or penalised maximiser, A = −∇²₁G, equation (3) as printed. A ball for one
            that may lie on its boundary: A = P(λI − ∇²₁G)P with the boundary's multiplier λ and tangent projection
            P, which is positive definite on the tangent space at a strict maximiser, where −∇²₁G alone need not be.
        positive: replace ∇²₁G by −∇²₁G in A. For ``gauss_newton``, whose product is positive semi-definite: A is
            then the positive definite surrogate (λ + damping)I + JᵀSJ, a trust-region metric instead of equation (3).
        relative_step: of the directional products (``linearise``).
        on_solution: called with each backward pass's ``Solution``; without it one that broke down or diverged, and
            whose gradient therefore is none, is warned of.
    """

    solver: Solver = field(default_factory=ConjugateGradient)
    curvature: CurvatureKind = "exact"
    mixed: MixedKind = "exact"
    ball: Ball | None = None
    positive: bool = False
    relative_step: float | None = None
    on_solution: Callable[[Solution], None] | None = None

    def __post_init__(self) -> None:
        check_kinds(self.curvature, self.mixed)
        if not isinstance(cast(object, self.solver), Solver):
            raise ValueError(f"solver: found {self.solver!r}; expected a solver, ConjugateGradient() for one")


class ImplicitArgmax(torch.autograd.Function):
    """δ(θ) = argmax_δ G(δ, θ), differentiable in θ by the implicit function theorem.

    forward: ``maximise(θ)``, which may be any maximiser, exact or not; nothing of it is recorded.
    backward: for a cotangent v, equation (3) transposed,

        (∇δ)ᵀ v = (∇²₁₂G)ᵀ A⁻¹ v,   A = −∇²₁G(δ(θ), θ)   (or its boundary form, see ``Response``),

    with A⁻¹ v from an iterative solver and one vector–Jacobian product. So ``outer(δ(θ), θ).backward()`` leaves the
    implicit hypergradient of equation (2) in the parameters' ``grad``.

    The paper takes equation (3) at a δ that is only approximately stationary; so does this. The stationarity
    condition differentiated here is that of the very G that ``maximise`` climbs, where the authors' code
    differentiates another loss (true labels, first mini-batch, one gradient step) than it maximises.

    Use ``implicit_argmax``; it checks its arguments.
    """

    @staticmethod
    def forward(
        ctx: Any,
        objective: Objective,
        maximise: Callable[[Theta], Tensor],
        response: Response,
        *theta: Tensor,
    ) -> Tensor:
        found = maximise(tuple(parameter.detach() for parameter in theta))
        if not isinstance(cast(object, found), Tensor):
            raise TypeError(f"maximise: found {type(found).__name__}; expected a function that returns δ, a tensor")
        delta = found.detach().clone()
        ctx.objective, ctx.response = objective, response
        ctx.save_for_backward(delta, *theta)
        return delta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        delta, *theta = ctx.saved_tensors
        gradients, solution = response_product(ctx.objective, delta, tuple(theta), v, ctx.response)
        if ctx.response.on_solution is None and solution.status in ("breakdown", "diverged"):
            warnings.warn(
                f"the system of the implicit gradient ended as {solution.status!r} after {solution.steps} steps, at a"
                f" residual of {solution.residual:.2g}: {solution.message}",
                stacklevel=2,
            )
        return (None, None, None, *gradients)


def implicit_argmax(
    objective: Objective, maximise: Callable[[Theta], Tensor], theta: Theta, response: Response | None = None
) -> Tensor:
    """δ(θ) with the implicit gradient attached.

    Args:
        objective: G(δ, θ), maximised over δ; twice differentiable.
        maximise: θ ↦ δ, run without gradients; any shape of δ.
        theta: the parameters; those that require gradients get them.

    Returns:
        δ, the shape ``maximise`` returned.

    Raises:
        ValueError: ``theta`` is empty.
        TypeError: ``objective`` is a plain function, ``theta`` no tuple, or what ``maximise`` returned no tensor.
    """
    if isinstance(cast(object, theta), Tensor):
        raise TypeError("theta: found a tensor; expected a tuple of them")
    if not theta:
        raise ValueError("theta: found no parameters; expected at least one")
    if not hasattr(objective, "parts"):
        raise TypeError(f"objective: found {objective!r}; expected an Objective, e.g. FunctionObjective(function)")
    return ImplicitArgmax.apply(objective, maximise, response or Response(), *theta)  # type: ignore[no-any-return]


def response_product(
    objective: Objective, delta: Tensor, theta: Theta, v: Tensor, response: Response
) -> tuple[Theta, Solution]:
    """(∇δ)ᵀ v of equation (3), and how its solve ended. ``v`` has the shape of δ."""
    point = linearise(
        objective, delta, theta,
        curvature=response.curvature, mixed=response.mixed, relative_step=response.relative_step,
    )  # fmt: skip
    sign = 1.0 if response.positive else -1.0
    tangent = response.ball.tangent(delta, point.gradient) if response.ball else None

    def project(x: Tensor) -> Tensor:
        return tangent.project(x) if tangent else x

    def matvec(flat: Tensor) -> Tensor:
        x = project(flat.view_as(delta))
        image = sign * point.curvature(x)
        if tangent:
            image = project(image + tangent.multiplier * x)
        return image.flatten()

    solution = response.solver.solve(matvec, project(v).flatten())
    if response.on_solution:
        response.on_solution(solution)
    return point.mixed(project(solution.x.view_as(delta))), solution
