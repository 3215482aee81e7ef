"""Every solver against the dense oracle, and its status where a solve cannot succeed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ibau_defense.solvers import (
    SOLVERS,
    ConjugateGradient,
    Dense,
    FirstTerm,
    FixedPoint,
    Minres,
    Neumann,
    NormalCG,
    Solver,
)

DTYPE = torch.float64
ITERATIVE = [name for name in SOLVERS if name not in ("dense", "first_term")]
INDEFINITE_SAFE = ["minres", "normal_cg"]


def symmetric(eigenvalues: list[float], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=DTYPE))
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=DTYPE)) @ basis.T


def right_hand_side(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed + 1), dtype=DTYPE)


def solver(name: str, **settings: float) -> Solver:
    defaults: dict[str, float] = {"max_steps": 4000, "rtol": 1e-12}
    if name in ("fixed_point", "neumann"):
        defaults["step"] = 0.3
    return SOLVERS[name](**{**defaults, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ITERATIVE)
@settings(max_examples=20)
@given(
    eigenvalues=st.lists(st.floats(0.2, 3.0), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    damping=st.sampled_from([0.0, 0.5]),
)
def test_agrees_with_dense_on_positive_definite(name: str, eigenvalues: list[float], seed: int, damping: float) -> None:
    matrix, b = symmetric(eigenvalues, seed), right_hand_side(len(eigenvalues), seed)
    found = solver(name, damping=damping).solve(lambda v: matrix @ v, b)
    oracle = Dense(damping=damping).solve(lambda v: matrix @ v, b)
    assert found.status == "converged"
    # The error is at most residual / smallest eigenvalue: 1e-12 · ‖b‖ / 0.2, far under 1e-8.
    assert torch.allclose(found.x, oracle.x, atol=1e-8, rtol=0)
    assert found.residual <= 1e-12
    assert found.curvature >= min(eigenvalues) + damping - 1e-9


@pytest.mark.parametrize("name", INDEFINITE_SAFE)
@settings(max_examples=20)
@given(
    positive=st.lists(st.floats(0.3, 2.0), min_size=1, max_size=6),
    negative=st.lists(st.floats(-2.0, -0.3), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_indefinite_systems_are_solved_by_minres_and_normal_cg(
    name: str, positive: list[float], negative: list[float], seed: int
) -> None:
    matrix = symmetric(positive + negative, seed)
    b = right_hand_side(len(matrix), seed)
    found = solver(name, rtol=1e-11).solve(lambda v: matrix @ v, b)
    assert found.status == "converged"
    assert torch.allclose(found.x, torch.linalg.solve(matrix, b), atol=1e-8, rtol=0)


def test_conjugate_gradient_stops_at_negative_curvature_with_the_iterate_before_it() -> None:
    matrix, b = symmetric([2.0, 1.0, -1.5], 0), right_hand_side(3, 0)
    found = ConjugateGradient(max_steps=50, rtol=1e-12).solve(lambda v: matrix @ v, b)
    assert found.status == "breakdown"
    assert found.curvature < 0
    assert found.x.isfinite().all()
    # The residual reported is that of the iterate returned.
    assert float((b - matrix @ found.x).norm() / b.norm()) == pytest.approx(found.residual, rel=1e-9)


@pytest.mark.parametrize("kind", [FixedPoint, Neumann])
def test_an_expanding_map_is_reported_as_diverged(kind: type[Solver]) -> None:
    matrix, b = symmetric([1.0, -2.0], 1), right_hand_side(2, 1)
    found = kind(max_steps=200, rtol=1e-9).solve(lambda v: matrix @ v, b)
    assert found.status == "diverged"
    assert found.curvature < 0
    assert found.x.isfinite().all()


@pytest.mark.parametrize("name", ["conjugate_gradient", "minres", "normal_cg", "dense"])
def test_a_singular_inconsistent_system_breaks_down_instead_of_claiming_success(name: str) -> None:
    matrix, b = symmetric([2.0, 1.0, 0.5, 0.0], 2), right_hand_side(4, 2)
    found = solver(name, max_steps=300).solve(lambda v: matrix @ v, b)
    assert found.status == "breakdown"
    assert found.x.isfinite().all()
    if name != "conjugate_gradient":  # the others end at the least-squares solution: A(b − Ax) = 0
        assert float((matrix @ (b - matrix @ found.x)).norm()) < 1e-8


@pytest.mark.parametrize("name", ["conjugate_gradient", "minres", "normal_cg", "dense"])
def test_a_singular_consistent_system_is_solved(name: str) -> None:
    matrix = symmetric([2.0, 1.0, 0.5, 0.0], 3)
    b = matrix @ right_hand_side(4, 3)
    found = solver(name, rtol=1e-9).solve(lambda v: matrix @ v, b)
    assert found.status == "converged"
    assert float((b - matrix @ found.x).norm()) < 1e-8


@pytest.mark.parametrize("name", list(SOLVERS))
def test_a_zero_right_hand_side_gives_zero_and_divides_by_nothing(name: str) -> None:
    matrix = symmetric([1.0, 0.5], 4)
    found = solver(name).solve(lambda v: matrix @ v, torch.zeros(2, dtype=DTYPE))
    assert (found.status, found.residual) == ("converged", 0.0)
    assert torch.equal(found.x, torch.zeros(2, dtype=DTYPE))


@pytest.mark.parametrize("name", [*ITERATIVE, "dense"])
def test_nan_products_are_diverged_with_a_finite_iterate(name: str) -> None:
    found = solver(name).solve(lambda v: v * float("nan"), right_hand_side(3, 5))
    assert found.status == "diverged"
    assert found.x.isfinite().all()
    assert "step" in found.message


@pytest.mark.parametrize("name", ITERATIVE)
def test_too_few_steps_is_max_steps(name: str) -> None:
    matrix, b = symmetric([3.0, 2.0, 1.0, 0.1], 6), right_hand_side(4, 6)
    found = solver(name, max_steps=1).solve(lambda v: matrix @ v, b)
    assert (found.status, found.steps) == ("max_steps", 1)


@pytest.mark.parametrize("name", ["fixed_point", "conjugate_gradient", "minres"])
def test_an_exact_first_iterate_needs_no_step(name: str) -> None:
    matrix, b = symmetric([3.0, 2.0, 1.0], 7), right_hand_side(3, 7)
    found = solver(name, rtol=1e-10).solve(lambda v: matrix @ v, b, x0=torch.linalg.solve(matrix, b))
    assert (found.status, found.steps) == ("converged", 0)


@pytest.mark.parametrize("name", ["conjugate_gradient", "minres", "fixed_point", "neumann"])
def test_a_preconditioner_changes_the_path_not_the_answer(name: str) -> None:
    values = torch.tensor([30.0, 3.0, 0.3, 1.0], dtype=DTYPE)
    b = right_hand_side(4, 8)
    settings = {"step": 1.0} if name in ("fixed_point", "neumann") else {}
    found = solver(name, preconditioner=lambda r: r / values, **settings).solve(lambda v: values * v, b)  # type: ignore[arg-type]
    assert (found.status, found.steps) == ("converged", 1)
    assert torch.allclose(found.x, b / values, atol=1e-10)


@pytest.mark.parametrize("kind", [FixedPoint, Neumann])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_truncation_is_the_series_of_the_authors_code(kind: type[Solver], steps: int) -> None:
    """v ← (I − ηA)v + b from v = 0, K times, then times η: hypertorch's recursion, written out."""
    matrix, b, eta = symmetric([3.0, -1.0, 0.5], 9), right_hand_side(3, 9), 0.1
    v = torch.zeros_like(b)
    for _ in range(steps):
        v = v - eta * matrix @ v + b
    found = kind(max_steps=steps, rtol=0.0, step=eta).solve(lambda x: matrix @ x, b)  # type: ignore[call-arg]
    assert torch.allclose(found.x, eta * v, atol=1e-14)


def test_reading_the_status_rarely_does_not_change_the_result() -> None:
    matrix, b = symmetric([3.0, 2.0, 1.0, 0.5], 10), right_hand_side(4, 10)
    often, once = (
        ConjugateGradient(max_steps=20, rtol=1e-10, check_every=every).solve(lambda v: matrix @ v, b)
        for every in (1, 100)
    )
    assert torch.equal(often.x, once.x)
    assert (often.status, often.steps) == (once.status, once.steps)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_steps"):
        Minres(max_steps=-1)
    with pytest.raises(ValueError, match="rtol"):
        NormalCG(rtol=-1.0)
    with pytest.raises(ValueError, match="flat vector"):
        Minres().solve(lambda v: v, torch.zeros(2, 2))


def test_the_first_term_is_one_step_of_the_series_without_a_product() -> None:
    def refuse(v: Tensor) -> Tensor:
        raise AssertionError("a product was formed")

    b = right_hand_side(3, 11)
    found = FirstTerm(step=0.1).solve(refuse, b)
    series = FixedPoint(max_steps=1, step=0.1).solve(lambda v: 2 * v, b)
    assert torch.equal(found.x, series.x)
    assert (found.status, found.steps) == ("max_steps", 0)
    assert math.isnan(found.residual)
    assert FirstTerm().solve(refuse, b * float("nan")).status == "diverged"


@pytest.mark.parametrize("name", ITERATIVE)
def test_the_residual_is_a_share_of_the_right_hand_side(name: str) -> None:
    solution = SOLVERS[name](max_steps=0).solve(lambda v: v, torch.full((4,), 7.0, dtype=torch.float64))
    assert (solution.residual, solution.status) == (pytest.approx(1.0), "max_steps")
