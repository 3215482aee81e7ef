"""The Neumann series of Lorraine et al. (2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ibau_defense.solvers.base import Matvec, Solver, State, first_residual


@dataclass(frozen=True)
class Neumann(Solver):
    """x = x₀ + step · Σ_{k<K} (I − step · M A)ᵏ M (b − A x₀), summed term by term.

    The same iterates as ``FixedPoint`` in exact arithmetic; here the terms themselves are formed, so the residual
    is that of the terms: b − A x = (M step)⁻¹ times the next term.
    """

    step: float = 0.1
    name: ClassVar[str] = "neumann"

    def _start(self, operator: Matvec, b: Tensor, x0: Tensor | None) -> State:
        x, r = first_residual(operator, b, x0)
        return {"x": x, "term": self._precondition(r), "r": r, "residual": r.norm()}

    def _step(self, operator: Matvec, b: Tensor, state: State) -> State:
        term = state["term"]
        image = operator(term)
        quotient = torch.dot(term, image) / torch.clamp(torch.dot(term, term), min=torch.finfo(b.dtype).tiny)
        r = state["r"] - self.step * image
        return {
            "x": state["x"] + self.step * term,
            "term": term - self.step * self._precondition(image),
            "r": r,
            "residual": r.norm(),
            "curvature": torch.minimum(state["curvature"], quotient),
        }
