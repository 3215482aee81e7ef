"""The first term of the Neumann series: a step along b, at the price of no product at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ibau_defense.solvers.base import Matvec, Solution, Solver, State, Status


@dataclass(frozen=True)
class FirstTerm(Solver):
    """x = step · M b, which ``FixedPoint`` and ``Neumann`` reach after one step from zero.

    With it (∇δ)ᵀ∇₁H is step · (∇²₁₂H)ᵀ∇₁H = ½ step · ∇_θ‖∇₁H‖²: the implicit term becomes a penalty on the
    sensitivity of the loss to δ. No product is formed, so residual and curvature are unknown (NaN), and the status
    is ``max_steps`` (``converged`` for b = 0).
    """

    step: float = 1.0
    name: ClassVar[str] = "first_term"

    @torch.no_grad()
    def solve(self, matvec: Matvec, b: Tensor, x0: Tensor | None = None) -> Solution:
        x = self.step * self._precondition(b)
        finite = x.isfinite().all()
        sound, some = torch.stack([finite, (b != 0).any()]).tolist()  # the one read
        status: Status = "diverged" if not sound else "max_steps" if some else "converged"
        residual = 0.0 if status == "converged" else math.nan
        return Solution(torch.where(finite, x, torch.zeros_like(x)), status, 0, residual, math.nan)

    def _start(self, operator: Matvec, b: Tensor, x0: Tensor | None) -> State:
        raise NotImplementedError("first_term does not iterate")

    def _step(self, operator: Matvec, b: Tensor, state: State) -> State:
        raise NotImplementedError("first_term does not iterate")
