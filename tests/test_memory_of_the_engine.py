"""Appendix A.3.1: what is kept for backward does not grow with the inner or the solver's steps; unrolling does.

Counted by saved-tensor hooks, so on any device: bytes alive at once, a storage saved twice counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import models
from ibau_defense import L2Ball, MultiStart, Network, UniversalLoss, ascend, ascend_from_many, value_and_gradients
from ibau_defense.ascent import Ascent
from ibau_defense.implicit import Response, response_product
from ibau_defense.solvers import FixedPoint


class _Ledger:
    """Bytes of the storages that graphs hold now, and the most they held."""

    def __init__(self) -> None:
        self.users: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def take(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        self.users[key] += 1
        self.sizes[key] = storage.nbytes()
        self.peak = max(self.peak, sum(self.sizes[one] for one, users in self.users.items() if users > 0))
        return key

    def drop(self, key: int) -> None:
        self.users[key] -= 1


class _Held:
    def __init__(self, tensor: Tensor, ledger: _Ledger) -> None:
        self.tensor, self.ledger, self.key = tensor, ledger, ledger.take(tensor)

    def __del__(self) -> None:
        self.ledger.drop(self.key)


def most_saved(work: Callable[[], Any]) -> int:
    """The most bytes alive at once in saved tensors while ``work`` runs."""
    ledger = _Ledger()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: _Held(t, ledger), lambda held: held.tensor):
        work()
    return ledger.peak


@pytest.fixture(scope="module")
def loss() -> UniversalLoss:
    torch.manual_seed(0)
    model: nn.Module = models.build("simplified_vgg", 10, (3, 16, 16))
    images, labels = torch.rand(16, 3, 16, 16), torch.arange(16) % 10
    return UniversalLoss(Network(model), images, labels)


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
        settings, generator = MultiStart(tiles=1, whole=2, images=4, steps=steps), torch.Generator().manual_seed(0)

        def draw(count: int) -> tuple[Tensor, Tensor]:
            return loss.images[:count], loss.labels[:count]

        return most_saved(
            lambda: ascend_from_many(
                loss.network, draw, loss.images.shape[1:], loss.network.theta, L2Ball(1.0), settings, generator
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

    def unroll(steps: int) -> int:
        def work() -> None:
            theta = tuple(x.clone().requires_grad_(True) for x in loss.network.theta)
            delta = torch.zeros(3, 16, 16, requires_grad=True)
            point: Tensor = delta
            for _ in range(steps):
                (gradient,) = torch.autograd.grad(loss(point, theta), point, create_graph=True)
                point = point + 0.1 * gradient
            torch.autograd.grad(loss(point, theta), theta)

        return most_saved(work)

    two, four, eight = unroll(2), unroll(4), unroll(8)
    assert (eight - four) == pytest.approx(2 * (four - two), rel=0.1)
    assert eight > 8 * one_gradient
