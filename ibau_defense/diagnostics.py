"""What one outer step and one round did: whether the implicit term did anything, and whether to believe it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ibau_defense.ascent import AscentResult
from ibau_defense.balls import Ball
from ibau_defense.objective import Theta
from ibau_defense.solvers import Solution


@dataclass(frozen=True)
class StepReport:
    """One outer step.

    Attributes:
        loss: the outer loss before the step.
        inner_before, inner_after: the ascent's first and last objective value.
        inner_status: how the ascent ended.
        delta_norm: ‖δ‖ in the ball's norm; the largest where several are carried.
        direct_norm, implicit_norm: ‖∇₂H‖ and ‖(∇δ)ᵀ∇₁H‖ over all parameters; 0 where the term is off.
        angle: between the two terms, degrees in [0, 180]; NaN where one is zero.
        solver_status, solver_steps, residual, curvature: the ``Solution``; None where no system was solved.
        finite: whether the loss and both terms were finite; a step that is not finite is not taken.
        seconds: wall time.
    """

    loss: float
    inner_before: float
    inner_after: float
    inner_status: str
    delta_norm: float
    direct_norm: float
    implicit_norm: float
    angle: float
    finite: bool
    solver_status: str | None = None
    solver_steps: int | None = None
    residual: float | None = None
    curvature: float | None = None
    seconds: float = 0.0

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
        direct_square = sum((x.square().sum() for x in direct), zero)
        implicit_square = sum((x.square().sum() for x in implicit or ()), zero)
        dot = sum(((x * y).sum() for x, y in zip(direct, implicit or (), strict=bool(implicit))), zero)
        trace = ascent.trace if ascent.trace.numel() else torch.full((1,), torch.nan, device=loss.device)
        scalars = [loss, trace[0], trace[-1], ascent.norm(ball), direct_square, implicit_square, dot]
        values = torch.stack([x.detach().double() for x in scalars]).tolist()
        value, before, after, norm, a, b, ab = values
        cosine = ab / (a * b) ** 0.5 if a > 0 and b > 0 else float("nan")
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
        return cls(value, before, after, ascent.status, norm, a**0.5, b**0.5, angle, finite, **outcome)


@dataclass(frozen=True)
class RoundReport:
    """One round: medians over its outer steps, the worst residual and the count of every solver status."""

    index: int
    steps: int
    loss: float
    inner_before: float
    inner_after: float
    inner_status: str
    delta_norm: float
    direct_norm: float
    implicit_norm: float
    angle: float
    solver_status: dict[str, int]
    solver_steps: int | None
    residual: float | None
    curvature: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: what is not finite becomes None."""
        return {key: _finite_or_none(value) for key, value in asdict(self).items()}


def summarise(index: int, steps: Sequence[StepReport]) -> RoundReport:
    """The report of a round from its steps (none where the time ran out before the first)."""
    solved = [step for step in steps if step.solver_status is not None]
    return RoundReport(
        index=index,
        steps=len(steps),
        loss=_median([step.loss for step in steps]),
        inner_before=_median([step.inner_before for step in steps]),
        inner_after=_median([step.inner_after for step in steps]),
        inner_status=Counter(step.inner_status for step in steps).most_common(1)[0][0] if steps else "none",
        delta_norm=_median([step.delta_norm for step in steps]),
        direct_norm=_median([step.direct_norm for step in steps]),
        implicit_norm=_median([step.implicit_norm for step in steps]),
        angle=_median([step.angle for step in steps]),
        solver_status=dict(Counter(str(step.solver_status) for step in solved)),
        solver_steps=max((step.solver_steps or 0 for step in solved), default=None),
        residual=max((step.residual or 0.0 for step in solved), default=None),
        curvature=min((step.curvature or 0.0 for step in solved), default=None),
        seconds=sum(step.seconds for step in steps),
    )


def _median(values: Sequence[float]) -> float:
    sound = sorted(value for value in values if value == value)
    return sound[len(sound) // 2] if sound else float("nan")


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
