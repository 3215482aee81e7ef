"""The implicit gradient against closed forms, finite differences, unrolling and an outside oracle. All in float64."""

from __future__ import annotations

import pytest
import rank_cases
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ibau_defense import (
    FunctionObjective,
    ImplicitArgmax,
    L1Ball,
    L2Ball,
    LinfBall,
    Network,
    Response,
    UniversalLoss,
    implicit_argmax,
)
from ibau_defense.balls import Ball
from ibau_defense.cuda import Precision, graphs_for
from ibau_defense.graphs import Graphs
from ibau_defense.implicit import response_product
from ibau_defense.objective import Theta
from ibau_defense.solvers import SOLVERS, ConjugateGradient, Dense, FixedPoint, Minres, Solution

DTYPE = torch.float64
D, P = 4, 3


def quadratic(seed: int, size: int = D, width: int = P) -> tuple[Tensor, Tensor]:
    """Q ≻ 0 (size, size) and B (size, width)."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=DTYPE)
    return root @ root.T / size + 0.5 * torch.eye(size, dtype=DTYPE), torch.randn(
        size, width, generator=generator, dtype=DTYPE
    )


def concave(q: Tensor, b: Tensor) -> FunctionObjective:
    """G(δ, θ) = −½ δᵀQδ + δᵀBθ + a non-quadratic, still concave term; for θ = (θ₁,)."""
    return FunctionObjective(
        lambda delta, theta: -0.5 * delta @ q @ delta + delta @ (b @ theta[0]) - 0.05 * delta.pow(4).sum()
    )


def newton(objective: FunctionObjective, theta: Theta, steps: int = 40) -> Tensor:
    """The maximiser of a concave objective, to machine precision."""
    delta = torch.zeros(D, dtype=DTYPE)
    for _ in range(steps):
        gradient = torch.func.grad(lambda d: objective(d, theta))(delta)
        hessian = torch.func.hessian(lambda d: objective(d, theta))(delta)
        delta = delta - torch.linalg.solve(hessian, gradient)
    return delta


def projected_ascent(objective: FunctionObjective, theta: Theta, ball: Ball, steps: int = 20000) -> Tensor:
    delta = torch.full((D,), 1e-3, dtype=DTYPE)
    for _ in range(steps):
        moved = ball.project(delta + 0.05 * torch.func.grad(lambda d: objective(d, theta))(delta))
        if torch.equal(moved, delta):
            break
        delta = moved
    return delta


@pytest.mark.parametrize(
    "solver", [Dense(), ConjugateGradient(max_steps=50, rtol=1e-13), Minres(max_steps=50, rtol=1e-13)]
)
@pytest.mark.parametrize("curvature", ["exact", "forward_over_reverse"])
def test_gradcheck_of_the_function(solver: Dense, curvature: str) -> None:
    q, b = quadratic(0)
    objective = concave(q, b)
    response = Response(solver=solver, curvature=curvature)  # type: ignore[arg-type]

    def respond(theta: Tensor) -> Tensor:
        return ImplicitArgmax.apply(objective, lambda t: newton(objective, t), response, theta)  # type: ignore[no-any-return]

    theta = torch.randn(P, generator=torch.Generator().manual_seed(1), dtype=DTYPE, requires_grad=True)
    assert torch.autograd.gradcheck(respond, (theta,), eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("ball", "scale"), [(L2Ball(0.4), 3.0), (LinfBall(0.3), 3.0), (L1Ball(0.5), 3.0), (L2Ball(100.0), 1.0)]
)
def test_gradcheck_on_the_boundary_of_each_ball(ball: Ball, scale: float) -> None:
    """A maximiser pressed against the ball: equation (3) as printed is wrong there, the tangent form is right."""
    q, b = quadratic(2)
    objective = concave(q, scale * b)
    response = Response(solver=Dense(), ball=ball)

    def respond(theta: Tensor) -> Tensor:
        return implicit_argmax(objective, lambda t: projected_ascent(objective, t, ball), (theta,), response)

    theta = torch.tensor([1.0, -0.5, 0.8], dtype=DTYPE, requires_grad=True)
    # The ascent converges linearly, to about 1e-14; differences of step 1e-5 then err by 1e-9.
    assert torch.autograd.gradcheck(respond, (theta,), eps=1e-5, atol=1e-5, rtol=1e-4)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 6), width=st.integers(1, 5))
def test_closed_form_of_quadratics(seed: int, size: int, width: int) -> None:
    """δ(θ) = Q⁻¹Bθ, so (∇δ)ᵀv = BᵀQ⁻¹v."""
    q, b = quadratic(seed, size, width)
    v = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    theta = torch.ones(width, dtype=DTYPE)
    objective = FunctionObjective(lambda delta, t: -0.5 * delta @ q @ delta + delta @ (b @ t[0]))
    found, solution = response_product(
        objective, torch.linalg.solve(q, b @ theta), (theta,), v, Response(ConjugateGradient(max_steps=60, rtol=1e-13))
    )
    assert solution.status == "converged"
    assert torch.allclose(found[0], b.T @ torch.linalg.solve(q, v), atol=1e-9)


def test_a_positive_system_has_the_curvature_with_its_own_sign() -> None:
    q, b = quadratic(0)
    objective, theta, v = concave(q, b), (torch.ones(P, dtype=DTYPE),), torch.arange(1.0, D + 1, dtype=DTYPE)
    delta = newton(objective, theta)
    plain, turned = (
        response_product(objective, delta, theta, v, Response(Dense(), positive=positive))[0][0]
        for positive in (False, True)
    )
    assert plain.abs().min() > 1e-3
    torch.testing.assert_close(turned, -plain)


def test_penalised_form_differentiates_the_penalty_too() -> None:
    """max H − r‖δ‖² with H linear in δ: δ = Bθ / 2r, ∇δ = B / 2r."""
    _, b = quadratic(3)
    r, theta = 0.7, torch.tensor([0.3, -1.0, 0.5], dtype=DTYPE, requires_grad=True)
    objective = FunctionObjective(lambda delta, t: delta @ (b @ t[0]) - r * delta.square().sum())
    delta = implicit_argmax(objective, lambda t: b @ t[0] / (2 * r), (theta,))
    v = torch.arange(1.0, 5.0, dtype=DTYPE)
    (gradient,) = torch.autograd.grad(delta, theta, v)
    assert torch.allclose(gradient, b.T @ v / (2 * r), atol=1e-10)


def test_the_outer_loss_gets_equation_2_by_an_ordinary_backward() -> None:
    q, b = quadratic(4)
    objective = concave(q, b)
    theta = torch.tensor([0.2, 0.1, -0.4], dtype=DTYPE, requires_grad=True)

    def outer(delta: Tensor, t: Tensor) -> Tensor:
        return (delta.square().sum() + (t * delta[:P]).sum()).sin()

    delta = implicit_argmax(objective, lambda t: newton(objective, t), (theta,), Response(Dense()))
    outer(delta, theta).backward()
    assert theta.grad is not None
    step = 1e-6
    for index in range(P):
        shift = torch.zeros(P, dtype=DTYPE)
        shift[index] = step
        up, down = (theta.detach() + shift, theta.detach() - shift)
        difference = outer(newton(objective, (up,)), up) - outer(newton(objective, (down,)), down)
        assert float(theta.grad[index]) == pytest.approx(float(difference) / (2 * step), abs=1e-7)


def unrolled(objective: FunctionObjective, theta: Tensor, steps: int, rate: float) -> Tensor:
    delta = torch.zeros(D, dtype=DTYPE, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(objective(delta, (theta,)), delta, create_graph=True)
        delta = delta + rate * gradient
    return delta


def test_unrolled_differentiation_converges_to_the_implicit_gradient() -> None:
    q, b = quadratic(5)
    objective = concave(q, b)
    theta = torch.tensor([0.5, -0.2, 0.3], dtype=DTYPE, requires_grad=True)
    v = torch.ones(D, dtype=DTYPE)
    (exact,) = torch.autograd.grad(
        implicit_argmax(objective, lambda t: newton(objective, t), (theta,), Response(Dense())), theta, v
    )
    errors = []
    for steps in (5, 20, 80, 320):
        (approximate,) = torch.autograd.grad(unrolled(objective, theta, steps, 0.1), theta, v)
        errors.append(float((approximate - exact).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5 * errors[0]


def test_torchopt_agrees() -> None:
    """torchopt's ``custom_root`` as an outside oracle of the same implicit gradient."""
    torchopt = pytest.importorskip("torchopt", reason="torchopt is a test extra")
    q, b = quadratic(6)
    objective = concave(q, b)

    def optimality(delta: Tensor, theta: Tensor) -> Tensor:
        return torch.func.grad(lambda d: objective(d, (theta,)))(delta)

    solve = torchopt.diff.implicit.custom_root(
        optimality, argnums=1, solve=torchopt.linear_solve.solve_normal_cg(maxiter=100, rtol=1e-14)
    )(lambda delta, theta: newton(objective, (theta,)))
    theta = torch.tensor([0.4, 0.6, -0.1], dtype=DTYPE, requires_grad=True)
    v = torch.arange(D, dtype=DTYPE)
    (theirs,) = torch.autograd.grad(solve(torch.zeros(D, dtype=DTYPE), theta), theta, v)
    ours = torch.autograd.grad(
        implicit_argmax(objective, lambda t: newton(objective, t), (theta,), Response(Dense())), theta, v
    )[0]
    assert torch.allclose(ours, theirs, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ("dense", "first_term")])
def test_every_solver_gives_the_dense_hypergradient(name: str) -> None:
    q, b = quadratic(7)
    objective, theta = concave(q, b), (torch.tensor([0.5, 0.5, -0.5], dtype=DTYPE),)
    delta, v = newton(objective, theta), torch.ones(D, dtype=DTYPE)
    oracle, _ = response_product(objective, delta, theta, v, Response(Dense()))
    settings = {"step": 0.2} if name in ("fixed_point", "neumann") else {}
    solver = SOLVERS[name](max_steps=3000, rtol=1e-12, **settings)  # type: ignore[arg-type]
    found, solution = response_product(objective, delta, theta, v, Response(solver))
    assert solution.status == "converged"
    assert torch.allclose(found[0], oracle[0], atol=1e-8)


def test_the_status_of_the_backward_solve_is_reported() -> None:
    """A convex G has no maximiser: the solve says so instead of returning a number quietly."""
    seen: list[Solution] = []
    theta = torch.ones(D, dtype=DTYPE, requires_grad=True)
    objective = FunctionObjective(lambda delta, t: delta.square().sum() + (delta * t[0]).sum())
    response = Response(FixedPoint(max_steps=50, step=0.5, rtol=0.0), on_solution=seen.append)
    implicit_argmax(objective, lambda t: -t[0] / 2, (theta,), response).sum().backward()
    assert [solution.status for solution in seen] == ["diverged"]
    assert seen[0].curvature < 0


def test_a_solve_that_nobody_watches_warns_when_it_breaks_down() -> None:
    theta = torch.ones(D, dtype=DTYPE, requires_grad=True)
    objective = FunctionObjective(lambda delta, t: delta.square().sum() + (delta * t[0]).sum())
    response = implicit_argmax(objective, lambda t: -t[0] / 2, (theta,))
    with pytest.warns(UserWarning, match="'breakdown' after .* at a residual of 1: .* add damping"):
        response.sum().backward()


def test_what_is_no_objective_is_named() -> None:
    theta = (torch.ones(D, dtype=DTYPE),)
    with pytest.raises(TypeError, match=r"objective: found .*lambda.*; expected an Objective, e\.g\. FunctionObj"):
        implicit_argmax(lambda delta, t: delta.sum(), lambda t: t[0], theta)  # type: ignore[arg-type, return-value]


def test_a_response_of_wrong_settings_is_refused_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="mixed: found 'foo'; expected one of: exact, directional"):
        Response(mixed="foo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="curvature: found 'foo'; expected one of: exact, forward_over_reverse, "):
        Response(curvature="foo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="solver: found 'minres'; expected a solver"):
        Response("minres")  # type: ignore[arg-type]


def test_tensors_where_a_tuple_or_a_number_where_a_tensor_belongs_are_named() -> None:
    theta, objective = torch.ones(D, dtype=DTYPE), FunctionObjective(lambda d, t: -d.square().sum())
    with pytest.raises(TypeError, match="theta: found a tensor; expected a tuple of them"):
        implicit_argmax(objective, lambda t: t[0], theta)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="maximise: found float; expected a function that returns δ, a tensor"):
        implicit_argmax(objective, lambda t: 1.0, (theta,))  # type: ignore[arg-type, return-value]


def test_nothing_to_differentiate_is_an_error() -> None:
    with pytest.raises(ValueError, match="theta"):
        implicit_argmax(FunctionObjective(lambda d, t: d.sum()), lambda t: torch.zeros(1), ())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("curvature", ["exact", "forward_over_reverse", "directional"])
def test_on_cuda_the_hypergradient_is_that_of_the_cpu(curvature: str, recorded: bool) -> None:
    """Through ``ImplicitArgmax`` and an ordinary backward, on a network; recorded passes change nothing."""
    solver = FixedPoint(max_steps=5, damping=0.5)
    response = Response(solver=solver, curvature=curvature)  # type: ignore[arg-type]

    def gradients(device: torch.device, graphs: Graphs | None) -> list[Tensor]:
        images, labels = (one.to(device) for one in rank_cases.clean_set(12, DTYPE))
        network = Network(rank_cases.tiny(DTYPE).to(device))
        network.graphs = graphs
        loss = UniversalLoss(network, images, labels, penalty=0.1)
        theta = tuple(one.detach().requires_grad_(True) for one in network.theta)
        start = torch.linspace(-0.1, 0.1, 3 * 8 * 8, dtype=DTYPE, device=device).view(3, 8, 8)
        delta = implicit_argmax(loss, lambda _: start, theta, response)
        found = torch.autograd.grad(network(images + delta, theta).logsumexp(dim=1).sum(), theta)
        return [one.cpu() for one in found]

    device = torch.device("cuda")
    graphs = graphs_for(device, Precision(None, tf32=False)) if recorded else None
    expected = gradients(torch.device("cpu"), None)
    for _ in range(3 if recorded else 1):
        for a, b in zip(gradients(device, graphs), expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)
