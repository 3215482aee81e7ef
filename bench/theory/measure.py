"""The studies: rows of numbers, and with them where they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters import models
from bench.provenance import commit, provenance
from bench.theory import gaps
from bench.theory.concave import exact_hypergradient, implicit_error, quadratic, unrolled_error
from ibau_defense import Ascent, L2Ball, Network, Response, UniversalLoss, ascend, response_product, value_and_gradients
from ibau_defense.saved import most_saved
from ibau_defense.solvers import FixedPoint

Row = dict[str, Any]

STEPS = (1, 2, 3, 5, 8, 12, 17, 23, 30, 38, 47, 57, 68, 80)
SEEDS = range(15)
COUNTS = (1, 2, 4, 8, 16)
FEW = 5


def hypergradient_error() -> list[Row]:
    """Theorem 1 on random strongly concave quadratics: errors and bound after T steps, as shares of ‖∇ψ‖.

    ``implicit`` with K = T fixed-point steps, ``solved`` with the system solved by factorisation, ``unrolled`` by
    differentiating through the T steps; ``bound`` is (4) at T = K.
    """
    rows = []
    for seed in SEEDS:
        problem = quadratic(seed)
        size = float(exact_hypergradient(problem).norm())
        for steps in STEPS:
            rows.append(
                {
                    "seed": seed,
                    "steps": steps,
                    "implicit": implicit_error(problem, steps, steps) / size,
                    "solved": implicit_error(problem, steps, None) / size,
                    "unrolled": unrolled_error(problem, steps) / size,
                    "bound": problem.constants.bound(steps).total / size,
                }
            )
    return rows


def saved_bytes(counts: Sequence[int] = COUNTS) -> list[Row]:
    """Appendix A.3.1: the most bytes saved for backward in one outer step of the simplified VGG, 16 images of 16 × 16.

    ``one_gradient`` is one first-order pass, of δ and θ. ``implicit`` is a whole outer step of T ascent and K solver
    steps with exact products; ``unrolled`` records T ascent steps and differentiates through them.
    """
    loss = vgg_loss()
    zero, theta = torch.zeros(3, 16, 16), loss.network.theta
    alone = most_saved(lambda: value_and_gradients(loss, zero, theta, wrt_theta=True))
    rows: list[Row] = [{"what": "one_gradient", "inner_steps": 0, "solver_steps": 0, "bytes": alone}]
    for inner, solver in dict.fromkeys([*((t, FEW) for t in counts), *((FEW, k) for k in counts)]):
        saved = most_saved(lambda t=inner, k=solver: outer_step(loss, t, k))  # type: ignore[misc]
        rows.append({"what": "implicit", "inner_steps": inner, "solver_steps": solver, "bytes": saved})
    for inner in counts:
        saved = most_saved(lambda t=inner: unroll(loss, t))  # type: ignore[misc]
        rows.append({"what": "unrolled", "inner_steps": inner, "solver_steps": 0, "bytes": saved})
    return rows


def vgg_loss() -> UniversalLoss:
    """H on 16 random images, by the simplified VGG of 10 classes; float32."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = models.build("simplified_vgg", 10, (3, 16, 16))
        images = torch.rand(16, 3, 16, 16)
    return UniversalLoss(Network(model), images, torch.arange(16) % 10)


def outer_step(loss: UniversalLoss, inner_steps: int, solver_steps: int) -> None:
    """Lines 2 to 7 of Algorithm 1: ascent, gradient of the outer loss, solve."""
    theta, start = loss.network.theta, torch.zeros(loss.images.shape[1:])
    delta = ascend([loss], theta, start, L2Ball(1.0), Ascent(inner_steps, 0.1, "normalised")).delta
    _, pull, _ = value_and_gradients(loss, delta, theta, wrt_theta=True)
    assert pull is not None
    response_product(loss, delta, theta, pull, Response(FixedPoint(max_steps=solver_steps, step=0.1, rtol=0.0)))


def unroll(loss: UniversalLoss, inner_steps: int) -> None:
    """The alternative: differentiate through T recorded ascent steps."""
    theta = tuple(x.clone().requires_grad_(True) for x in loss.network.theta)
    point: Tensor = torch.zeros(loss.images.shape[1:], requires_grad=True)
    for _ in range(inner_steps):
        (gradient,) = torch.autograd.grad(loss(point, theta), point, create_graph=True)
        point = point + 0.1 * gradient
    torch.autograd.grad(loss(point, theta), theta)


STUDIES: dict[str, Callable[[], list[Row]]] = {
    "hypergradient_error": hypergradient_error,
    "saved_bytes": saved_bytes,
    "linear_gap": gaps.linear_gap,
    "network_gap_clean": gaps.network_gap_clean,
    "network_gap_width": gaps.network_gap_width,
}


def record(study: str) -> dict[str, Any]:
    """One study's rows with their provenance; JSON-able."""
    where = provenance(torch.device("cpu"), commit())
    return {"schema": 1, "study": study, "rows": STUDIES[study](), "provenance": where.model_dump(mode="json")}
