"""Projections and tangent spaces of the norm balls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ibau_defense import BALLS, L1Ball, L2Ball, LinfBall
from ibau_defense.balls import Ball

SHAPES = st.sampled_from([(), (1,), (1, 1, 1), (3, 4, 4), (1, 2, 5)])


@pytest.mark.parametrize("name", list(BALLS))
@settings(max_examples=40)
@given(shape=SHAPES, radius=st.floats(0.0, 5.0), scale=st.floats(0.0, 10.0), seed=st.integers(0, 999))
def test_projection_is_inside_idempotent_and_nearest(
    name: str, shape: tuple[int, ...], radius: float, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ball = BALLS[name](radius)
    point = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    projected = ball.project(point)
    assert float(ball.norm(projected)) <= radius * (1 + 1e-9) + 1e-12
    assert torch.allclose(ball.project(projected), projected, atol=1e-9)
    if float(ball.norm(point)) <= radius:
        assert torch.allclose(projected, point, atol=1e-12)
    # Nearest: no other point of the ball is closer (variational inequality of a convex projection).
    other = ball.project(torch.randn(shape, generator=generator, dtype=torch.float64))
    assert float(((point - projected) * (other - projected)).sum()) <= 1e-8


def test_l2_projection_is_line_5_of_algorithm_1() -> None:
    delta = torch.full((3, 2, 2), 2.0)
    expected = delta * min(1.0, 1.5 / float(delta.norm()))
    assert torch.allclose(L2Ball(1.5).project(delta), expected)


@pytest.mark.parametrize("name", list(BALLS))
def test_an_infinite_radius_is_no_bound_and_a_negative_one_an_error(name: str) -> None:
    delta = torch.randn(3, 2, 2)
    assert torch.equal(BALLS[name](float("inf")).project(delta), delta)
    delta[0, 0, 0] = 0.0
    (slope,) = torch.autograd.grad(BALLS[name](float("inf")).project(delta.requires_grad_()).sum(), delta)
    assert torch.equal(slope, torch.ones_like(delta))
    with pytest.raises(ValueError, match="radius"):
        BALLS[name](-1.0)


@pytest.mark.parametrize("name", list(BALLS))
def test_inside_the_ball_every_direction_is_free(name: str) -> None:
    delta, gradient, v = torch.randn(3, 3, 2, 2, dtype=torch.float64).unbind(0)
    tangent = BALLS[name](1e6).tangent(delta, gradient)
    assert torch.equal(tangent.project(v), v)
    assert float(tangent.multiplier) == 0.0


def test_l2_boundary_moves_are_orthogonal_to_delta_and_the_multiplier_balances_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    ball, v = L2Ball(float(delta.norm())), torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    tangent = ball.tangent(delta, 0.7 * delta)
    assert float(tangent.multiplier) == pytest.approx(0.7)
    assert float((tangent.project(v) * delta).sum()) == pytest.approx(0.0, abs=1e-12)


def test_linf_holds_the_coordinates_the_gradient_pushes_outward() -> None:
    delta = torch.tensor([1.0, -1.0, 1.0, 0.2])
    gradient = torch.tensor([2.0, -2.0, -2.0, 5.0])
    moved = LinfBall(1.0).tangent(delta, gradient).project(torch.ones(4))
    assert moved.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_l1_face_keeps_zeros_and_the_norm() -> None:
    delta = torch.tensor([0.6, -0.4, 0.0])
    moved = L1Ball(1.0).tangent(delta, delta.sign()).project(torch.tensor([1.0, 2.0, 3.0]))
    assert moved[2] == 0
    assert float((moved * delta.sign()).sum()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", list(BALLS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4, 5), ()])
def test_a_bank_is_projected_and_measured_as_its_members(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Each by its own radius: inside, on the way out, far out, on a ball that is a point, on one without a bound."""
    radii = [2.0, 0.7, 0.01, 0.0, float("inf"), 1.0]
    bank = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    bank[5] = 0
    found, plain = (
        kind(BALLS[name](1.0), bank, torch.tensor(radii, dtype=dtype))
        for kind in (BALLS[name].project_each, Ball.project_each)
    )
    norms = BALLS[name](1.0).norms(bank)
    for delta, radius, one, other, norm in zip(bank, radii, found, plain, norms, strict=True):
        expected = BALLS[name](radius).project(delta)
        assert torch.allclose(one, expected, rtol=1e-6, atol=1e-9)
        assert torch.allclose(other, expected, rtol=1e-6, atol=1e-9)
        assert torch.allclose(norm, BALLS[name](radius).norm(delta))
    assert torch.equal(Ball.norms(BALLS[name](1.0), bank[:1])[0], BALLS[name](1.0).norm(bank[0]))


@pytest.mark.parametrize("name", list(BALLS))
def test_where_the_gradient_points_inward_every_direction_is_free(name: str) -> None:
    """The bound holds nothing back there, and has no multiplier."""
    delta, v = torch.tensor([0.6, -0.6, 0.6]), torch.tensor([1.0, 2.0, -3.0])
    ball = BALLS[name](float(BALLS[name](1.0).norm(delta)))
    inward, outward = (ball.tangent(delta, sign * delta) for sign in (-1.0, 1.0))
    assert torch.equal(inward.project(v), v)
    assert float(inward.multiplier) == 0.0
    assert not torch.equal(outward.project(v), v)


@pytest.mark.parametrize("name", list(BALLS))
def test_what_a_projection_leaves_is_on_the_boundary(name: str) -> None:
    """Whichever way its rounding went: within a ten-thousandth of the radius."""
    ball = BALLS[name](0.7)
    delta = ball.project(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert [bool(ball.on_boundary(share * delta)) for share in (1.0, 1 - 5e-5, 1 - 5e-4)] == [True, True, False]
