"""The fixed-point iteration of Grazzi et al. (2020), the solver the paper and the authors' code use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ibau_defense.solvers.base import Matvec, Solver, State, first_residual


@dataclass(frozen=True)
class FixedPoint(Solver):
    """x ← x + step · M (b − A x).

    From x₀ = 0 and M = I, K steps give step · Σ_{k<K} (I − step · A)ᵏ b. With A = −∇²₁H and Φ(δ) = δ + step · ∇₁H
    this is what the authors' code accumulates as v ← (∂Φ/∂δ)ᵀ v + b, times the ``step`` of ∂Φ/∂θ. It is a
    contraction only where every eigenvalue of A lies in (0, 2/step); elsewhere K steps are a truncated series and
    the status says ``diverged`` or ``max_steps``.
    """

    step: float = 0.1
    name: ClassVar[str] = "fixed_point"

    def _start(self, operator: Matvec, b: Tensor, x0: Tensor | None) -> State:
        x, r = first_residual(operator, b, x0)
        return {"x": x, "r": r, "residual": r.norm()}

    def _step(self, operator: Matvec, b: Tensor, state: State) -> State:
        d = self._precondition(state["r"])
        image = operator(d)
        quotient = torch.dot(d, image) / torch.clamp(torch.dot(d, d), min=torch.finfo(b.dtype).tiny)
        r = state["r"] - self.step * image
        return {
            "x": state["x"] + self.step * d,
            "r": r,
            "residual": r.norm(),
            "curvature": torch.minimum(state["curvature"], quotient),
        }
