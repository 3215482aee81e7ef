"""Norm balls: where the universal perturbation may lie, and the geometry of their boundaries.

"Generalizing to other norms is straightforward", says the paper of Algorithm 1, which is written for ℓ2. A ball
gives the projection of line 5, and, at a maximiser on its boundary, the tangent space and the multiplier that make
the implicit system of equation (3) well posed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor


class Tangent(NamedTuple):
    """Directions in which a constrained maximiser can move, and the curvature its boundary adds.

    ``project``: δ-shaped to δ-shaped, the orthogonal projection on the tangent space (the identity in the interior).
    ``multiplier``: scalar λ ≥ 0; stationarity on the ball is ∇₁H = λ ∇c(δ), and the system is P(λI − ∇²₁H)P.
    """

    project: Callable[[Tensor], Tensor]
    multiplier: Tensor


@dataclass(frozen=True)
class Ball(ABC):
    """The set ‖δ‖ ≤ radius.

    Attributes:
        radius: C_δ, in the units of pixels in [0, 1]; ``inf`` for no bound.
    """

    radius: float

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not (isinstance(cast(object, self.radius), Real) and self.radius >= 0):
            raise ValueError(f"radius: found {self.radius!r}; expected a number of at least 0")

    @abstractmethod
    def norm(self, delta: Tensor) -> Tensor:
        """‖δ‖ of the whole tensor, a scalar."""

    @abstractmethod
    def project(self, delta: Tensor) -> Tensor:
        """The nearest point of the ball in the Euclidean distance; any shape."""

    @abstractmethod
    def tangent(self, delta: Tensor, gradient: Tensor) -> Tangent:
        """The tangent space at ``delta``, given the gradient ∇₁H there (same shape)."""

    def norms(self, bank: Tensor) -> Tensor:
        """(K, …) to (K,): the norm of each δ of a bank."""
        return torch.stack([self.norm(delta) for delta in bank])

    def project_each(self, bank: Tensor, radii: Tensor) -> Tensor:
        """As ``project``, each δ of a bank (K, …) into a ball of this kind with its own radius, (K,)."""
        balls = (replace(self, radius=radius) for radius in radii.tolist())
        return torch.stack([ball.project(delta) for ball, delta in zip(balls, bank, strict=True)])

    def contains(self, delta: Tensor, tolerance: float = 1e-5) -> bool:
        """Whether ‖δ‖ ≤ radius · (1 + tolerance)."""
        return bool(self.norm(delta) <= self.radius * (1 + tolerance))

    def on_boundary(self, delta: Tensor, tolerance: float = 1e-4) -> Tensor:
        """Scalar bool: whether ‖δ‖ is within ``tolerance`` (relative) of the radius."""
        return self.norm(delta) >= self.radius * (1 - tolerance)


@dataclass(frozen=True)
class L2Ball(Ball):
    """‖δ‖₂ ≤ radius: Algorithm 1, line 5, δ · min(1, C_δ / ‖δ‖₂)."""

    name: ClassVar[str] = "l2"

    def norm(self, delta: Tensor) -> Tensor:
        return delta.square().sum().sqrt()

    def norms(self, bank: Tensor) -> Tensor:
        return _rows(bank).square().sum(dim=1).sqrt()

    def project_each(self, bank: Tensor, radii: Tensor) -> Tensor:
        scale = radii / self.norms(bank).clamp(min=torch.finfo(bank.dtype).tiny)
        return bank * _each(scale.clamp(max=1.0), bank)

    def project(self, delta: Tensor) -> Tensor:
        if self.radius == float("inf"):
            return delta
        norm = self.norm(delta)
        scale = self.radius / norm.clamp(min=torch.finfo(delta.dtype).tiny)
        return delta * scale.clamp(max=1.0)

    def tangent(self, delta: Tensor, gradient: Tensor) -> Tangent:
        """On the sphere ∇₁H = λδ: λ = ⟨∇₁H, δ⟩ / ‖δ‖², and moves are orthogonal to δ."""
        size = delta.square().sum().clamp(min=torch.finfo(delta.dtype).tiny)
        pull = (gradient * delta).sum() / size
        active = (self.on_boundary(delta) & (pull > 0)).to(delta.dtype)

        def project(v: Tensor) -> Tensor:
            return v - active * (v * delta).sum() / size * delta

        return Tangent(project, active * pull)


@dataclass(frozen=True)
class LinfBall(Ball):
    """‖δ‖∞ ≤ radius."""

    name: ClassVar[str] = "linf"

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().max()

    def norms(self, bank: Tensor) -> Tensor:
        return _rows(bank).abs().amax(dim=1)

    def project_each(self, bank: Tensor, radii: Tensor) -> Tensor:
        bounds = _each(radii, bank)
        return torch.minimum(torch.maximum(bank, -bounds), bounds)

    def project(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.radius, self.radius)

    def tangent(self, delta: Tensor, gradient: Tensor) -> Tangent:
        """Coordinates at the bound that the gradient pushes outward stay; the faces are flat, so λ = 0."""
        held = (delta.abs() >= self.radius * (1 - 1e-4)) & (gradient * delta > 0)
        free = (~held).to(delta.dtype)
        return Tangent(lambda v: v * free, torch.zeros((), dtype=delta.dtype, device=delta.device))


@dataclass(frozen=True)
class L1Ball(Ball):
    """‖δ‖₁ ≤ radius, projected as in Duchi et al. (2008)."""

    name: ClassVar[str] = "l1"

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().sum()

    def norms(self, bank: Tensor) -> Tensor:
        return _rows(bank).abs().sum(dim=1)

    def project(self, delta: Tensor) -> Tensor:
        if self.radius == float("inf"):
            return delta
        return self.project_each(delta.reshape(1, -1), delta.new_full((1,), self.radius)).view(delta.shape)

    def project_each(self, bank: Tensor, radii: Tensor) -> Tensor:
        flat = _rows(bank).abs()
        ordered, _ = flat.sort(dim=1, descending=True)
        ranks = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
        thresholds = (ordered.cumsum(dim=1) - radii[:, None]) / ranks
        last = (ordered > thresholds).to(flat.dtype).cumsum(dim=1).argmax(dim=1, keepdim=True)
        outside = flat.sum(dim=1) > radii
        threshold = torch.where(outside, thresholds.gather(1, last).squeeze(1).clamp(min=0), 0.0)
        moved = bank.sign() * (bank.abs() - _each(threshold, bank)).clamp(min=0)
        return torch.where(_each(radii > 0, bank), moved, 0.0)  # at a radius of 0 the threshold leaves rounding errors

    def tangent(self, delta: Tensor, gradient: Tensor) -> Tangent:
        """On a face the zeros stay zero and Σ sign(δᵢ) vᵢ = 0; the faces are flat, so λ = 0."""
        zero = torch.zeros((), dtype=delta.dtype, device=delta.device)
        pull = (gradient * delta.sign()).sum()
        active = self.on_boundary(delta) & (pull > 0)
        signs = torch.where(active, delta.sign(), torch.zeros_like(delta))
        free = torch.where(active, (delta != 0).to(delta.dtype), torch.ones_like(delta))
        count = signs.abs().sum().clamp(min=1)
        return Tangent(lambda v: v * free - (v * signs).sum() / count * signs, zero)


def _rows(bank: Tensor) -> Tensor:
    """(K, …) as (K, d); d = 1 for a bank of scalars."""
    return bank.reshape(len(bank), -1)


def _each(values: Tensor, bank: Tensor) -> Tensor:
    """(K,) as (K, 1, …), of as many axes as ``bank``."""
    return values.view(-1, *[1] * (bank.dim() - 1))


BALLS: dict[str, type[Ball]] = {ball.name: ball for ball in (L2Ball, LinfBall, L1Ball)}
