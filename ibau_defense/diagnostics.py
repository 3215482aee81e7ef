"""What one outer step and one round did: whether the implicit term did anything, and whether to believe it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from ibau_defense.ascent import AscentResult
from ibau_defense.balls import Ball
from ibau_defense.objective import Theta
from ibau_defense.solvers import Solution


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is measured in one outer step, and of a round as the median over its steps.

    Attributes:
        loss: the outer loss before the step.
        inner_before, inner_after: the ascent's first and last objective value.
        inner_status: how the ascent ended; of a round, how most did.
        delta_norm: ‖δ‖ in the ball's norm; the largest where several are carried.
        direct_norm, implicit_norm: ‖∇₂H‖ and ‖(∇δ)ᵀ∇₁H‖ over all parameters; 0 where the term is off.
        angle: between the two terms, degrees in [0, 180]; NaN where one is zero.
        solver_steps, residual, curvature: the ``Solution``, of a round the worst, NaN where any is; None where no
            system was solved.
        seconds: wall time of the outer step alone; of a round, of all of it, the ascent and the guard too.
    """

    loss: float
    inner_before: float
    inner_after: float
    inner_status: str
    delta_norm: float
    direct_norm: float
    implicit_norm: float
    angle: float
    solver_steps: int | None = None
    residual: float | None = None
    curvature: float | None = None
    seconds: float = 0.0


MEDIANS = ("loss", "inner_before", "inner_after", "delta_norm", "direct_norm", "implicit_norm", "angle")


@dataclass(frozen=True, kw_only=True)
class StepReport(Figures):
    """One outer step.

    Attributes:
        finite: whether the loss and both terms were finite; a step that is not finite is not taken.
        solver_status: how the solve ended; None where no system was solved.
    """

    finite: bool
    solver_status: str | None = None

    @classmethod
    def measure(
        cls,
        loss: Tensor,
        ascent: AscentResult,
        ball: Ball,
        direct: Theta,
        implicit: Theta | None,
        solution: Solution | None,
    ) -> StepReport:
        """Read everything off the device at once."""
        zero = torch.zeros_like(loss)
        direct_norm, implicit_norm = (get_total_norm(terms) if terms else zero for terms in (direct, implicit or ()))
        dot = sum(((x * y).sum() for x, y in zip(direct, implicit or (), strict=bool(implicit))), zero)
        trace = ascent.trace if ascent.trace.numel() else torch.full((1,), torch.nan, device=loss.device)
        scalars = [loss, trace[0], trace[-1], ascent.norm(ball), direct_norm, implicit_norm, dot]
        values = torch.stack([x.detach().double() for x in scalars]).tolist()
        value, before, after, norm, a, b, ab = values
        cosine = ab / (a * b) if a > 0 and b > 0 else float("nan")
        angle = (
            float(torch.rad2deg(torch.acos(torch.tensor(max(-1.0, min(1.0, cosine)))))) if cosine == cosine else cosine
        )
        finite = all(math.isfinite(x) for x in (value, a, b))
        outcome: dict[str, Any] = {}
        if solution:
            outcome = {
                "solver_status": solution.status,
                "solver_steps": solution.steps,
                "residual": solution.residual,
                "curvature": solution.curvature,
            }
        return cls(
            loss=value, inner_before=before, inner_after=after, inner_status=ascent.status, delta_norm=norm,
            direct_norm=a, implicit_norm=b, angle=angle, finite=finite, **outcome,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RoundReport(Figures):
    """One round.

    Attributes:
        index: which, from 0.
        steps: outer steps done; the other figures are of these.
        undone: outer steps that the guard undid on the way; ``seconds`` has theirs too.
        solver_status: how often solves ended in each way.
    """

    index: int
    steps: int
    undone: int = 0
    solver_status: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: what is not finite becomes None."""
        return {key: _finite_or_none(value) for key, value in asdict(self).items()}


def summarise(
    index: int, steps: Sequence[StepReport], undone: Sequence[StepReport] = (), seconds: float = 0.0
) -> RoundReport:
    """The report of a round from its steps (none where the time ran out before the first, or all were undone)."""
    solved = [step for step in steps if step.solver_status is not None]
    return RoundReport(
        index=index,
        steps=len(steps),
        undone=len(undone),
        **{name: _median([getattr(step, name) for step in steps]) for name in MEDIANS},
        inner_status=Counter(step.inner_status for step in steps).most_common(1)[0][0] if steps else "none",
        solver_status=dict(Counter(str(step.solver_status) for step in solved)),
        solver_steps=max((step.solver_steps or 0 for step in solved), default=None),
        residual=_worst(max, [step.residual or 0.0 for step in solved]),
        curvature=_worst(min, [step.curvature or 0.0 for step in solved]),
        seconds=seconds,
    )


def _worst(pick: Callable[[Sequence[float]], float], values: Sequence[float]) -> float | None:
    """NaN where any of them is, in whatever order; None of none."""
    if any(math.isnan(value) for value in values):
        return math.nan
    return pick(values) if values else None


def _median(values: Sequence[float]) -> float:
    sound = sorted(value for value in values if value == value)
    return sound[len(sound) // 2] if sound else float("nan")


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
