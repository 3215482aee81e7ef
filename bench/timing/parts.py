"""The parts of an outer step of I-BAU, each as a call that does it once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from ibau_defense import (
    SOLVERS,
    Ascent,
    L2Ball,
    Network,
    Response,
    Solver,
    UniversalLoss,
    ascend,
    linearise,
    response_product,
    value_and_gradients,
)
from ibau_defense.curvature import CurvatureKind, MixedKind

Work = Callable[[], object]
Precision = Literal["float32", "bfloat16"]
BALL = L2Ball(10.0)


@dataclass(frozen=True)
class Part:
    """``build(loss, delta)`` prepares and returns the call that is timed.

    Attributes:
        to_theta: how many of an image's backward passes go to θ too, or to θ alone; all others go to δ alone.
        twice: it differentiates a gradient's own graph, and so gets the layers that are made for that.
        reduced: it can be had in bfloat16: nothing is differentiated twice.
    """

    build: Callable[[UniversalLoss, Tensor], Work]
    to_theta: int = 0
    twice: bool = False
    reduced: bool = False


def network(module: torch.nn.Module, precision: Precision, *, twice: bool = False) -> Network:
    """As the recipes have it: channels-last in bfloat16."""
    fast = precision == "bfloat16"
    return Network(module, autocast=torch.bfloat16 if fast else None, channels_last=fast, twice=twice)


def _ascent(loss: UniversalLoss, delta: Tensor) -> Work:
    settings = Ascent(steps=1, step_size=0.1, optimizer="adam")
    return lambda: ascend([loss], loss.network.theta, delta, BALL, settings)


def _gradients(loss: UniversalLoss, delta: Tensor) -> Work:
    return lambda: value_and_gradients(loss, delta, loss.network.theta, wrt_theta=True)


def _curvature(kind: CurvatureKind) -> Part:
    def build(loss: UniversalLoss, delta: Tensor) -> Work:
        point = linearise(loss, delta, loss.network.theta, curvature=kind, mixed=_mixed_with(kind))
        v = torch.ones_like(delta)
        return lambda: point.curvature(v)

    return Part(build, twice=kind == "exact", reduced=kind == "directional")


def _mixed(kind: MixedKind) -> Part:
    def build(loss: UniversalLoss, delta: Tensor) -> Work:
        point = linearise(loss, delta, loss.network.theta, curvature=kind, mixed=kind)
        v = torch.ones_like(delta)
        return lambda: point.mixed(v)

    exact = kind == "exact"
    return Part(build, to_theta=_of_mixed(kind), twice=exact, reduced=not exact)


def _of_mixed(kind: MixedKind) -> int:
    """Backward passes to θ of one product: through the gradient's graph, or on both sides of δ."""
    return 1 if kind == "exact" else 2


def _mixed_with(kind: CurvatureKind) -> MixedKind:
    """Which mixed product goes with it without a graph that the curvature does not need."""
    return "exact" if kind == "exact" else "directional"


def _solve(solver: Solver) -> Part:
    """The linear system of a response, without the graph that its products share and the mixed product after it."""

    def build(loss: UniversalLoss, delta: Tensor) -> Work:
        point = linearise(loss, delta, loss.network.theta)
        b = point.gradient.flatten()
        return lambda: solver.solve(lambda v: -point.curvature(v.view_as(delta)).flatten(), b)

    return Part(build, twice=True)


def _outer(response: Response) -> Part:
    """Both gradients, the graph, solve and mixed product of the response, and Adam's step on a copy of θ."""

    def build(loss: UniversalLoss, delta: Tensor) -> Work:
        theta = [one.clone().requires_grad_(True) for one in loss.network.theta]
        optimizer = torch.optim.Adam(theta, lr=1e-3)

        def step() -> None:
            _, pull, direct = value_and_gradients(loss, delta, loss.network.theta, wrt_theta=True)
            implicit, _ = response_product(loss, delta, loss.network.theta, cast(Tensor, pull), response)
            for one, a, b in zip(theta, cast("tuple[Tensor, ...]", direct), implicit, strict=True):
                one.grad = a + b
            optimizer.step()

        return step

    exact = response.curvature == response.mixed == "exact"
    return Part(build, to_theta=1 + _of_mixed(response.mixed), twice=exact, reduced=not exact)


PARTS: dict[str, Part] = {
    "ascent step": Part(_ascent, reduced=True),
    "gradients of delta and theta": Part(_gradients, to_theta=1, reduced=True),
    "curvature product, exact": _curvature("exact"),
    "curvature product, forward over reverse": _curvature("forward_over_reverse"),
    "curvature product, directional": _curvature("directional"),
    "curvature product, Gauss-Newton": _curvature("gauss_newton"),
    "mixed product, exact": _mixed("exact"),
    "mixed product, directional": _mixed("directional"),
    "solve, five fixed-point steps": _solve(SOLVERS["fixed_point"](max_steps=5, rtol=0.0)),
    "solve, five steps of conjugate gradient": _solve(SOLVERS["conjugate_gradient"](max_steps=5, rtol=0.0)),
    "outer step, five exact fixed-point steps": _outer(Response(SOLVERS["fixed_point"](max_steps=5, rtol=0.0))),
    "outer step, first term, directional": _outer(
        Response(SOLVERS["first_term"](), curvature="directional", mixed="directional")
    ),
}
