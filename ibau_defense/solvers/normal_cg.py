"""Conjugate gradients on the normal equations: least squares for any symmetric A, at two products a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ibau_defense.solvers.base import Matvec, Solver, State, first_residual


@dataclass(frozen=True)
class NormalCG(Solver):
    """CGLS: conjugate gradients on A² x = A b, for a symmetric A of any signature or rank.

    Squares the condition number, so it needs more steps than MINRES, but it cannot meet negative curvature. Where
    b has a part outside the range of A it stops at the least-squares solution with ``breakdown``. ``preconditioner``
    stands for (A²)⁻¹ here.
    """

    name: ClassVar[str] = "normal_cg"

    def _start(self, operator: Matvec, b: Tensor, x0: Tensor | None) -> State:
        x, r = first_residual(operator, b, x0)
        s = operator(r)
        z = self._precondition(s)
        sz = torch.dot(s, z)
        return {"x": x, "r": r, "p": z, "sz": sz, "first_sz": sz, "residual": r.norm()}

    def _step(self, operator: Matvec, b: Tensor, state: State) -> State:
        p, sz = state["p"], state["sz"]
        image = operator(p)
        size = torch.dot(image, image)
        eps, tiny = torch.finfo(b.dtype).eps, torch.finfo(b.dtype).tiny
        # ‖A r‖ at rounding level of its first value: nothing of r is left in the range of A.
        broken = (size <= 0) | (sz <= (10 * eps) ** 2 * state["first_sz"])
        alpha = sz / torch.where(broken, torch.ones_like(size), size)
        r = state["r"] - alpha * image
        s = operator(r)
        z = self._precondition(s)
        new_sz = torch.dot(s, z)
        quotient = torch.dot(p, image) / torch.dot(p, p).clamp(min=tiny)
        return {
            "x": state["x"] + alpha * p,
            "r": r,
            "p": z + new_sz / torch.where(sz == 0, torch.ones_like(sz), sz) * p,
            "sz": new_sz,
            "residual": r.norm(),
            "broken": broken,
            "curvature": torch.minimum(state["curvature"], quotient),
        }
