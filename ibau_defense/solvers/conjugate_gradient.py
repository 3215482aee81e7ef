"""Conjugate gradients (Hestenes and Stiefel, 1952), guarded against curvature that is not positive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ibau_defense.solvers.base import Matvec, Solver, State, first_residual


@dataclass(frozen=True)
class ConjugateGradient(Solver):
    """Preconditioned conjugate gradients for a symmetric positive definite A.

    A direction p with pᵀAp ≤ 0 proves A not positive definite: the solve stops there with ``breakdown`` and the
    iterate before it (the truncation of Steihaug, 1983), instead of dividing by it.
    """

    name: ClassVar[str] = "conjugate_gradient"

    def _start(self, operator: Matvec, b: Tensor, x0: Tensor | None) -> State:
        x, r = first_residual(operator, b, x0)
        z = self._precondition(r)
        rz = torch.dot(r, z)
        return {"x": x, "r": r, "p": z, "rz": rz, "residual": r.norm(), "largest": torch.zeros_like(rz)}

    def _step(self, operator: Matvec, b: Tensor, state: State) -> State:
        p, rz = state["p"], state["rz"]
        image = operator(p)
        bend, size = torch.dot(p, image), torch.dot(p, p)
        tiny = torch.finfo(b.dtype).tiny
        # Curvature at the rounding level of the largest product met counts as none: to divide by it is to add noise,
        # and the recurrence would then claim a residual that x does not have.
        largest = torch.maximum(state["largest"], image.norm() / size.sqrt().clamp(min=tiny))
        broken = (bend <= 10 * torch.finfo(b.dtype).eps * largest * size) | (rz <= 0)
        alpha = rz / torch.where(broken, torch.ones_like(bend), bend)
        r = state["r"] - alpha * image
        z = self._precondition(r)
        new_rz = torch.dot(r, z)
        return {
            "x": state["x"] + alpha * p,
            "r": r,
            "p": z + new_rz / torch.where(rz == 0, torch.ones_like(rz), rz) * p,
            "rz": new_rz,
            "residual": r.norm(),
            "broken": broken,
            "largest": largest,
            "curvature": torch.minimum(state["curvature"], bend / size.clamp(min=tiny)),
        }
