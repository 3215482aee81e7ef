"""Theorem 1, equation (4): how far Algorithm 1's hypergradient can be from the exact one.

    ‖∇ψ̃(θ) − ∇ψ(θ)‖ ≤ (c₁ + c₂ (1 − qᵗ)/(1 − q)) ρ(t) + c₃ qᵗ

The statement and its proof in Appendix A.1 differ in four places; the proof, Grazzi et al. (2020), was followed.
The statement calls H(·, θ) strongly *convex* and maximises it: read −H. It compares with ∇ψ, the gradient at an
arbitrary suboptimal δ(θ), where Lemma 1 has ∇ψ*, at the stationary point: the latter. Equation (8) has the sign of
∇²₁H that belongs to a minimisation. And one t counts both the ascent's steps and the solver's: see ``bound``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ibau_defense.objective import Objective, Theta, value_and_gradients


class HypergradientBound(NamedTuple):
    """Equation (4) and its terms, which add up to ``total``; all in the units of ‖∇ψ‖.

    Attributes:
        total: bound on ‖∇ψ̃(θ) − ∇ψ(θ)‖₂.
        inner: c₁ ρ(t), the outer loss and its gradient taken at δ_t instead of δ(θ).
        linearisation: c₂ (1 − q^k)/(1 − q) ρ(t), the system formed at δ_t instead of δ(θ).
        truncation: c₃ q^k, the solve stopped after k fixed-point steps.
    """

    total: float
    inner: float
    linearisation: float
    truncation: float


@dataclass(frozen=True)
class HypergradientConstants:
    """The constants of Theorem 1 at one θ, and the bound (4) they give.

    The inner problem maximises G(·, θ), so −G is what the paper's "H strongly convex" says of H; its gradient map is
    Φ(δ, θ) = δ + α∇₁G(δ, θ).

    Attributes:
        strong_concavity: μ_H > 0, the smallest eigenvalue of −∇²₁G.
        smoothness: L_H ≥ μ_H, the largest.
        mixed: L_h ≥ ‖∇²₂₁G(δ(θ), θ)‖₂.
        curvature_lipschitz: ρ̂₁, of δ ↦ ∇²₁G, in the spectral norm.
        mixed_lipschitz: ρ̂₂, of δ ↦ ∇²₂₁G.
        outer_gradient: L_{H,θ} ≥ ‖∇₁E‖₂ where the iterates are, E the outer loss (in the paper E is H itself).
        outer_lipschitz_delta, outer_lipschitz_theta: η₁ and η₂, of δ ↦ ∇₁E and δ ↦ ∇₂E.
        radius: C_δ ≥ ‖δ(θ)‖₂, the distance from the start δ = 0 to the maximiser.
        step: α; None for the optimal 2/(L_H + μ_H) of Appendix A.1.
        step_gradient: ‖∇α(θ)‖; 0 for a step that does not depend on θ, as in Algorithm 1.

    Raises:
        ValueError: μ_H ≤ 0 or a step with which Φ is no contraction: the theorem then says nothing.
    """

    strong_concavity: float
    smoothness: float
    mixed: float
    curvature_lipschitz: float
    mixed_lipschitz: float
    outer_gradient: float
    outer_lipschitz_delta: float
    outer_lipschitz_theta: float
    radius: float
    step: float | None = None
    step_gradient: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.strong_concavity <= self.smoothness:
            raise ValueError(
                f"strong_concavity: found {self.strong_concavity:g} with smoothness {self.smoothness:g}; expected "
                "0 < strong_concavity <= smoothness: Theorem 1 holds for strongly concave inner problems only"
            )
        if not self.contraction < 1:
            raise ValueError(
                f"step: found {self.alpha:g}; expected under {2 / self.smoothness:g}, 2/L_H, for a contraction"
            )

    @property
    def alpha(self) -> float:
        """α."""
        return 2 / (self.smoothness + self.strong_concavity) if self.step is None else self.step

    @property
    def contraction(self) -> float:
        """q_θ = max{1 − αμ_H, αL_H − 1}."""
        return max(1 - self.alpha * self.strong_concavity, self.alpha * self.smoothness - 1)

    @property
    def c1(self) -> float:
        """(η₂ + η₁ L_h α / (1 − q)) C_δ."""
        response = self.mixed * self.alpha / (1 - self.contraction)
        return (self.outer_lipschitz_theta + self.outer_lipschitz_delta * response) * self.radius

    @property
    def c2(self) -> float:
        """(L_H ‖∇α‖ + ρ̂₂ α + ρ̂₁ α · L_h α / (1 − q)) L_{H,θ} C_δ."""
        moved = self.smoothness * self.step_gradient + self.mixed_lipschitz * self.alpha
        response = self.mixed * self.alpha / (1 - self.contraction)
        return (moved + self.curvature_lipschitz * self.alpha * response) * self.outer_gradient * self.radius

    @property
    def c3(self) -> float:
        """L_{H,θ} L_h α / (1 − q)."""
        return self.outer_gradient * self.mixed * self.alpha / (1 - self.contraction)

    def bound(self, inner_steps: int, solver_steps: int | None = None) -> HypergradientBound:
        """Equation (4) after t = ``inner_steps`` steps of Φ from δ = 0 and k = ``solver_steps`` fixed-point steps.

        The paper's statement has one t for both, its Lemma 1 (Grazzi et al. 2020, Theorem 2.1) likewise with k = t;
        Algorithm 1 has T and K, so both are taken here, None meaning k = t. ρ(t), which the paper leaves
        undefined, is Grazzi's: ‖δ_t − δ(θ)‖ ≤ ρ(t)‖δ(θ)‖, hence q^t for steps of Φ.
        """
        steps = inner_steps if solver_steps is None else solver_steps
        q = self.contraction
        rate = q**inner_steps
        inner = self.c1 * rate
        linearisation = self.c2 * (1 - q**steps) / (1 - q) * rate
        truncation = self.c3 * q**steps
        return HypergradientBound(inner + linearisation + truncation, inner, linearisation, truncation)


def hypergradient_constants(
    inner: Objective,
    outer: Objective,
    theta: Theta,
    maximiser: Tensor,
    *,
    points: Sequence[Tensor] = (),
    step: float | None = None,
) -> HypergradientConstants:
    """Theorem 1's constants of one problem, from dense second derivatives; for small δ and θ (d · p numbers each).

    The extremes of curvature and the Lipschitz constants η of first derivatives are the largest found at
    ``maximiser`` and ``points``, those of second derivatives (ρ̂) the steepest slopes between two of them: exact for
    quadratics, estimates from below otherwise. ‖∇₁E‖ is bounded over the ball around δ(θ) through 0, where the
    iterates stay, by its value at δ(θ) and η₁.

    Args:
        inner: G(δ, θ), strongly concave in δ.
        outer: E(δ, θ).
        maximiser: δ(θ).
        points: further δ, such as the iterates of the ascent from 0.

    Raises:
        ValueError: −∇²₁G is not positive definite at one of the points.
    """
    everywhere = [maximiser, *points]
    curvatures, mixed = zip(*(_second(inner, x, theta) for x in everywhere), strict=True)
    outer_curvatures, outer_mixed = zip(*(_second(outer, x, theta) for x in everywhere), strict=True)
    eigenvalues = torch.cat([torch.linalg.eigvalsh(-one) for one in curvatures])
    _, pull, _ = value_and_gradients(outer, maximiser, theta)
    radius, bend = float(maximiser.norm()), _largest(outer_curvatures)
    return HypergradientConstants(
        strong_concavity=float(eigenvalues.min()),
        smoothness=float(eigenvalues.max()),
        mixed=_largest(mixed),
        curvature_lipschitz=_steepest(curvatures, everywhere),
        mixed_lipschitz=_steepest(mixed, everywhere),
        outer_gradient=float(cast(Tensor, pull).norm()) + bend * radius,
        outer_lipschitz_delta=bend,
        outer_lipschitz_theta=_largest(outer_mixed),
        radius=radius,
        step=step,
    )


def _largest(matrices: Sequence[Tensor]) -> float:
    return max(float(torch.linalg.matrix_norm(one, 2)) for one in matrices)


def _steepest(matrices: Sequence[Tensor], points: Sequence[Tensor]) -> float:
    """The largest slope between two points that differ."""
    slopes = [
        float(torch.linalg.matrix_norm(matrices[i] - matrices[j], 2) / (points[i] - points[j]).norm())
        for i in range(len(points))
        for j in range(i)
        if bool((points[i] != points[j]).any())
    ]
    return max(slopes, default=0.0)


def _second(objective: Objective, delta: Tensor, theta: Theta) -> tuple[Tensor, Tensor]:
    """(∇²₁G (d, d), ∇²₂₁G (d, p))."""
    delta = delta.detach().requires_grad_()
    theta = tuple(one.detach().requires_grad_() for one in theta)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective(delta, theta), delta, create_graph=True)
    rows = []
    for entry in gradient.flatten():
        pieces = torch.autograd.grad(entry, (delta, *theta), retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([one.flatten() for one in pieces]))
    dense = torch.stack(rows)
    count = delta.numel()
    return dense[:, :count], dense[:, count:]
