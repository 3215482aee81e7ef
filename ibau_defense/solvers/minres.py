"""MINRES (Paige and Saunders, 1975): symmetric systems that may be indefinite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ibau_defense.solvers.base import Matvec, Solver, State, first_residual


@dataclass(frozen=True)
class Minres(Solver):
    """Minimises ‖b − A x‖ over the Krylov space; A symmetric, of any signature.

    Lanczos vectors with one Givens rotation a step. The preconditioner must be positive definite; the residual is
    then measured in its norm. An exhausted Krylov space (β = 0) short of the tolerance means that b has a part
    outside the range of A: ``breakdown``, with the least-squares iterate.
    """

    name: ClassVar[str] = "minres"

    def _start(self, operator: Matvec, b: Tensor, x0: Tensor | None) -> State:
        x, r = first_residual(operator, b, x0)
        y = self._precondition(r)
        beta = torch.dot(r, y).clamp(min=0).sqrt()
        zero, vector = torch.zeros_like(beta), torch.zeros_like(b)
        return {
            "x": x, "r1": vector, "r2": r, "y": y, "beta": beta, "old_beta": zero,
            "w": vector, "w_old": vector, "phi": beta, "dbar": zero, "epsln": zero,
            "cs": -torch.ones_like(beta), "sn": zero, "residual": beta, "largest": zero,
        }  # fmt: skip

    def _step(self, operator: Matvec, b: Tensor, state: State) -> State:
        tiny, eps = torch.finfo(b.dtype).tiny, torch.finfo(b.dtype).eps
        beta = state["beta"].clamp(min=tiny)
        v = state["y"] / beta
        y = operator(v)
        first = state["old_beta"] == 0
        y = y - torch.where(first, torch.zeros_like(beta), beta / state["old_beta"].clamp(min=tiny)) * state["r1"]
        alpha = torch.dot(v, y)
        r2 = y - alpha / beta * state["r2"]
        y = self._precondition(r2)
        new_beta = torch.dot(r2, y).clamp(min=0).sqrt()
        largest = torch.maximum(state["largest"], torch.stack([alpha.abs(), new_beta]).max())
        new_beta = torch.where(new_beta <= 10 * eps * largest, torch.zeros_like(new_beta), new_beta)
        # Apply the previous rotation, then form the one that annihilates new_beta.
        delta = state["cs"] * state["dbar"] + state["sn"] * alpha
        gbar = state["sn"] * state["dbar"] - state["cs"] * alpha
        gamma = torch.hypot(gbar, new_beta)
        # ‖A r‖ / ‖r‖ of the current iterate; where it vanishes, no direction is left that lowers the residual.
        least_squares = torch.hypot(gbar, state["cs"] * new_beta) <= eps ** (2 / 3) * largest
        exhausted = (gamma <= 10 * eps * largest) | least_squares
        safe = torch.where(exhausted, torch.ones_like(gamma), gamma)
        cs, sn = gbar / safe, new_beta / safe
        w = (v - state["epsln"] * state["w_old"] - delta * state["w"]) / safe
        return {
            "x": state["x"] + cs * state["phi"] * w,
            "r1": state["r2"], "r2": r2, "y": y, "beta": new_beta, "old_beta": beta,
            "w": w, "w_old": state["w"], "phi": sn * state["phi"],
            "dbar": -state["cs"] * new_beta, "epsln": state["sn"] * new_beta, "cs": cs, "sn": sn,
            "residual": (sn * state["phi"]).abs(), "broken": exhausted, "largest": largest,
            "curvature": torch.minimum(state["curvature"], alpha / torch.dot(v, v).clamp(min=tiny)),
        }  # fmt: skip
