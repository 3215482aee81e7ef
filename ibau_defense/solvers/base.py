"""Operator, solver and outcome are three nouns: a solver turns a matvec and a right-hand side into a ``Solution``.

Non-convergence is a value. The systems of implicit differentiation need not be definite (the inner problem of
equation (1) is not concave), so every solver says how it ended, with what residual, and what curvature it met.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]
"""A symmetric linear map: a flat vector (d,) to a flat vector (d,)."""

Status = Literal["converged", "max_steps", "breakdown", "diverged"]
State = dict[str, Tensor]

ADVICE: dict[Status, str] = {
    "converged": "the residual met the tolerance",
    "max_steps": "the residual is above the tolerance after max_steps; raise max_steps or rtol, or add damping",
    "breakdown": "the solver met a direction it cannot handle (curvature not positive, or a singular system); "
    "add damping, or use minres or normal_cg",
    "diverged": "the residual grew or is not finite; use a smaller step, more damping, or a Krylov solver",
}


@dataclass(frozen=True)
class Solution:
    """The outcome of a solve of A x = b.

    Attributes:
        x: (d,) the last iterate before the solver stopped; always finite unless ``b`` is not.
        status: how it ended; ``message`` says what to do about it.
        steps: iterations done.
        residual: ‖b − A x‖ / ‖b‖ (0 where b = 0), as tracked by the recurrence.
        curvature: the smallest Rayleigh quotient pᵀAp / pᵀp met on a direction of the solve; a negative one proves
            A indefinite. NaN where the solver meets none (``dense`` reports the smallest eigenvalue).
    """

    x: Tensor
    status: Status
    steps: int
    residual: float
    curvature: float

    @property
    def message(self) -> str:
        return ADVICE[self.status]


@dataclass(frozen=True)
class Solver(ABC):
    """Settings every solver shares; a subclass writes ``_start`` and ``_step``.

    Attributes:
        max_steps: most iterations.
        rtol, atol: converged once ‖b − A x‖ ≤ max(rtol ‖b‖, atol).
        damping: solves (A + damping · I) x = b.
        preconditioner: a map close to A⁻¹, symmetric positive definite; None for the identity.
        check_every: iterations between two reads of the status. None reads every iteration on the CPU and only
            once, at the end, on a device, where each read would make the host wait; an iterate that has converged
            is frozen either way, so the result is the same.
    """

    max_steps: int = 20
    rtol: float = 1e-5
    atol: float = 0.0
    damping: float = 0.0
    preconditioner: Matvec | None = None
    check_every: int | None = None

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"max_steps: found {self.max_steps}; expected 0 or more")
        if self.rtol < 0 or self.atol < 0:
            raise ValueError(f"rtol, atol: found {self.rtol}, {self.atol}; expected 0 or more")

    @torch.no_grad()
    def solve(self, matvec: Matvec, b: Tensor, x0: Tensor | None = None) -> Solution:
        """Solve A x = b.

        Args:
            matvec: v ↦ A v, symmetric; (d,) to (d,).
            b: (d,) float right-hand side.
            x0: (d,) first iterate; zero where None.
        """
        if b.dim() != 1:
            raise ValueError(f"b: found shape {tuple(b.shape)}; expected a flat vector (d,)")

        def operator(v: Tensor) -> Tensor:
            return matvec(v) + self.damping * v if self.damping else matvec(v)

        state = self._start(operator, b, x0)
        tolerance = torch.clamp(self.rtol * b.norm(), min=self.atol)
        state["steps"] = torch.zeros((), dtype=torch.int64, device=b.device)
        state.setdefault("broken", torch.zeros((), dtype=torch.bool, device=b.device))
        state.setdefault("curvature", torch.full((), torch.inf, dtype=b.dtype, device=b.device))
        first_residual = state["residual"]
        every = self.check_every or (1 if b.device.type == "cpu" else self.max_steps + 1)
        for step in range(self.max_steps):
            active = (state["residual"] > tolerance) & ~state["broken"] & state["residual"].isfinite()
            if step % every == 0 and every <= self.max_steps and not bool(active):
                break
            proposal = {**state, **self._step(operator, b, state), "steps": state["steps"] + 1}
            state = _advance(state, proposal, active)
        return _outcome(state, tolerance, first_residual, b)

    def _precondition(self, v: Tensor) -> Tensor:
        return v if self.preconditioner is None else self.preconditioner(v)

    @abstractmethod
    def _start(self, operator: Matvec, b: Tensor, x0: Tensor | None) -> State:
        """The state before the first step: at least ``x`` (d,) and ``residual`` (scalar)."""

    @abstractmethod
    def _step(self, operator: Matvec, b: Tensor, state: State) -> State:
        """The changed entries after one step; ``broken`` true where it could not be taken (``x`` is then kept)."""


def first_residual(operator: Matvec, b: Tensor, x0: Tensor | None) -> tuple[Tensor, Tensor]:
    """(x, b − A x) for the first iterate; no product is spent on a zero one."""
    if x0 is None:
        return torch.zeros_like(b), b.clone()
    return x0.clone(), b - operator(x0)


def _advance(state: State, proposal: State, active: Tensor) -> State:
    """Take the proposal where the solve is active, without asking the device whether it is.

    A step that broke down or left the finite numbers keeps ``x``; its flags, residual and curvature are kept.
    """
    sound = active & ~proposal["broken"] & proposal["residual"].isfinite() & proposal["x"].isfinite().all()
    flags = {"broken", "residual", "curvature", "steps"}
    merged = {}
    for key, new in proposal.items():
        take = active if key in flags else sound
        merged[key] = torch.where(take, new, state[key])
    # A breakdown leaves the iterate, hence also its residual, where they were.
    merged["residual"] = torch.where(active & proposal["broken"], state["residual"], merged["residual"])
    return merged


def _outcome(state: State, tolerance: Tensor, first: Tensor, b: Tensor) -> Solution:
    """One read of the device for everything the caller wants to know."""
    scale = torch.where(b.norm() > 0, b.norm(), torch.ones_like(first))
    row = torch.stack(
        [
            state["residual"].double(),
            tolerance.double(),
            first.double(),
            scale.double(),
            state["curvature"].double(),
            state["broken"].double(),
            state["steps"].double(),
        ]
    ).tolist()
    residual, bound, start, size, curvature, broken, steps = row
    status: Status
    if residual <= bound:
        status = "converged"
    elif broken:
        status = "breakdown"
    elif not residual <= max(start, size):  # grew, or is NaN
        status = "diverged"
    else:
        status = "max_steps"
    met = curvature if curvature != float("inf") else float("nan")
    return Solution(state["x"], status, int(steps), residual / size, met)
