"""The oracle: form A column by column and factorise it. For small d, and for testing the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ibau_defense.solvers.base import Matvec, Solution, Solver, State, Status


@dataclass(frozen=True)
class Dense(Solver):
    """x = A⁻¹ b by the eigendecomposition of the symmetrised A; d products and d² memory.

    A singular A (an eigenvalue under d · eps · the largest) gives the minimum-norm least-squares solution, with
    status ``breakdown`` where b has a part outside the range. ``curvature`` is the smallest eigenvalue.
    """

    name: ClassVar[str] = "dense"

    @torch.no_grad()
    def solve(self, matvec: Matvec, b: Tensor, x0: Tensor | None = None) -> Solution:
        identity = torch.eye(b.numel(), dtype=b.dtype, device=b.device)
        matrix = torch.stack([matvec(column) for column in identity], dim=1) + self.damping * identity
        if not bool(matrix.isfinite().all() & b.isfinite().all()):
            return Solution(torch.zeros_like(b), "diverged", b.numel(), float("nan"), float("nan"))
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        floor = b.numel() * torch.finfo(b.dtype).eps * values.abs().max()
        inverse = torch.where(values.abs() > floor, 1 / values, torch.zeros_like(values))
        x = vectors @ (inverse * (vectors.T @ b))
        size = float(b.norm()) or 1.0
        residual = float((b - matrix @ x).norm()) / size
        tight = max(self.rtol, 100 * float(torch.finfo(b.dtype).eps) * b.numel())
        status: Status = "converged" if residual <= tight else "breakdown"
        return Solution(x, status, b.numel(), residual, float(values.min()))

    def _start(self, operator: Matvec, b: Tensor, x0: Tensor | None) -> State:
        raise NotImplementedError("dense does not iterate")

    def _step(self, operator: Matvec, b: Tensor, state: State) -> State:
        raise NotImplementedError("dense does not iterate")
