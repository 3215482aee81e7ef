"""The oracle: form A column by column and factorise it. For small d, and for testing the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ibau_defense.solvers.base import Matvec, Solution, Solver, State, Status


@dataclass(frozen=True)
class Dense(Solver):
    """x = A⁻¹ b by the eigendecomposition of the symmetrised A; d products and d² memory.

    A singular A (an eigenvalue under d · eps · the largest) gives the minimum-norm least-squares solution, with
    status ``breakdown`` where b has a part outside the range. ``curvature`` is the smallest eigenvalue. On a device
    the eigendecomposition itself may make the host wait.
    """

    name: ClassVar[str] = "dense"

    @torch.no_grad()
    def solve(self, matvec: Matvec, b: Tensor, x0: Tensor | None = None) -> Solution:
        identity = torch.eye(b.numel(), dtype=b.dtype, device=b.device)
        matrix = torch.stack([matvec(column) for column in identity], dim=1) + self.damping * identity
        sound = matrix.isfinite().all() & b.isfinite().all()
        matrix, b = torch.where(sound, matrix, identity), torch.where(sound, b, torch.zeros_like(b))
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        floor = b.numel() * torch.finfo(b.dtype).eps * values.abs().max()
        inverse = torch.where(values.abs() > floor, 1 / values, torch.zeros_like(values))
        x = vectors @ (inverse * (vectors.T @ b))
        row = [sound, b.norm(), (b - matrix @ x).norm(), values.min()]
        finite, size, rest, smallest = torch.stack([one.double() for one in row]).tolist()  # the one read
        if not finite:
            return Solution(x, "diverged", b.numel(), math.nan, math.nan)
        residual = rest / (size or 1.0)
        tight = max(self.rtol, 100 * float(torch.finfo(b.dtype).eps) * b.numel())
        status: Status = "converged" if residual <= tight else "breakdown"
        return Solution(x, status, b.numel(), residual, smallest)

    def _start(self, operator: Matvec, b: Tensor, x0: Tensor | None) -> State:
        raise NotImplementedError("dense does not iterate")

    def _step(self, operator: Matvec, b: Tensor, state: State) -> State:
        raise NotImplementedError("dense does not iterate")
