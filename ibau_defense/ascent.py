"""The inner maximisation: lines 2 to 5 of Algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from ibau_defense.balls import Ball
from ibau_defense.objective import Objective, Theta, UniversalLoss, graphs_of, value_and_gradients
from ibau_defense.parallel import ranks_of

AscentStatus = Literal["ascended", "no_gain", "no_harm", "not_finite"]


@dataclass(frozen=True)
class Ascent:
    """T steps δ ← δ + α · direction(∇₁G), projected on the ball.

    Attributes:
        steps: T.
        step_size: α, in the units of pixels in [0, 1]; where ``relative``, as a share of the ball's radius.
        optimizer: ``sgd``, the plain step of line 4; ``adam``, its usual normalised step, the paper's alternative;
            ``normalised``, α · ∇₁G / ‖∇₁G‖₂, steepest ascent in ℓ2.
        project: ``each`` step, as line 5 stands inside the loop; or only the ``last``, as in the authors' notebooks.
    """

    steps: int
    step_size: float
    optimizer: Literal["sgd", "adam", "normalised"] = "sgd"
    project: Literal["each", "last"] = "each"
    relative: bool = False


@dataclass(frozen=True)
class AscentResult:
    """Where the ascent ended.

    Attributes:
        delta: (C, H, W), in the ball; (K, C, H, W) for a bank.
        trace: (T,) the objective before each step, on that step's images.
        status: ``not_finite`` where a gradient was NaN or infinite: δ is the last finite one; ``no_harm`` where the
            trace is of a look for harmful δ that found none: δ is the bank before it (``MultiStart.harmful``).
        harm: (K,) the loss of each δ of a bank; None where there is one δ.
    """

    delta: Tensor
    trace: Tensor
    status: AscentStatus
    harm: Tensor | None = None

    def norm(self, ball: Ball) -> Tensor:
        """‖δ‖ in the ball's norm, a scalar; the largest of a bank."""
        if self.harm is None:
            return ball.norm(self.delta)
        return ball.norms(self.delta).max()


def ascend(objectives: Sequence[Objective], theta: Theta, start: Tensor, ball: Ball, settings: Ascent) -> AscentResult:
    """Maximise over δ; step t uses ``objectives[t mod len(objectives)]`` (one a mini-batch).

    Args:
        start: (C, H, W) δ before the first step; line 2 sets it to zero.

    Raises ``ValueError`` where steps are a share of a radius that is infinite.
    """
    if settings.relative and not math.isfinite(ball.radius):
        raise ValueError(f"radius: found {ball.radius}; expected a finite one, of which relative steps are a share")
    delta, losses = start.detach().clone(), []
    sound = torch.ones((), dtype=torch.bool, device=delta.device)
    steps = torch.zeros((), dtype=torch.float64, device=delta.device)
    state = [delta, torch.zeros_like(delta), torch.zeros_like(delta), sound, steps]
    for step in range(settings.steps):
        value, *state = _climb(objectives[step % len(objectives)], theta, state, ball, settings)
        losses.append(value)
    delta, sound = state[0], state[3]
    delta = ball.project(delta)
    trace = torch.stack(losses) if losses else torch.zeros(0, device=delta.device)
    return AscentResult(delta, trace, _status(trace, sound))


def _climb(objective: Objective, theta: Theta, state: list[Tensor], ball: Ball, settings: Ascent) -> list[Tensor]:
    """One step, replayed as a whole where the network's passes are recorded and no other process has a part in it."""
    graphs = graphs_of(objective)
    if graphs is None or ranks_of(objective) is not None:
        return _step(objective, theta, state, ball, settings)
    loss = cast(UniversalLoss, objective)

    def work(*tensors: Tensor) -> list[Tensor]:
        return _step(loss.with_tensors(tensors[len(state) :]), theta, list(tensors[: len(state)]), ball, settings)

    count = len(loss.images)
    name = ("ascent", settings, ball, loss.settings)
    return graphs.run(name, work, (*state, *loss.tensors()), theta, (count, count))


def _step(objective: Objective, theta: Theta, state: list[Tensor], ball: Ball, settings: Ascent) -> list[Tensor]:
    """(value before, then ``state`` after): δ, Adam's two moments, whether all gradients were finite, steps done."""
    delta, first, second, sound, steps = state
    value, found, _ = value_and_gradients(objective, delta, theta)
    gradient = cast(Tensor, found)
    direction, moments = _direction(gradient, (first, second), steps, settings.optimizer)
    sound = sound & gradient.isfinite().all()
    moved = delta + (settings.step_size * ball.radius if settings.relative else settings.step_size) * direction
    if settings.project == "each":
        moved = ball.project(moved)
    return [value, torch.where(sound, moved, delta), *moments, sound, steps + 1]


def _direction(
    gradient: Tensor, moments: tuple[Tensor, Tensor], steps: Tensor, optimizer: str
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    if optimizer == "sgd":
        return gradient, moments
    if optimizer == "normalised":
        return gradient / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny), moments
    first = moments[0].lerp(gradient, 0.1)
    second = moments[1].lerp(gradient.square(), 0.001)
    corrections = [(1 - decay ** (steps + 1)).to(gradient.dtype) for decay in (0.9, 0.999)]
    return first / corrections[0] / ((second / corrections[1]).sqrt() + 1e-8), (first, second)


def _status(trace: Tensor, sound: Tensor) -> AscentStatus:
    stuck = trace[-1] <= trace[0] if trace.numel() > 1 else ~sound
    finite, still = torch.stack([sound, stuck]).tolist()  # the one read of an ascent
    if not finite:
        return "not_finite"
    return "no_gain" if still else "ascended"
