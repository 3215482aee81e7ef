"""Linear classifiers unlearned by the minimax of (1) within a norm limit fixed beforehand: where Theorem 2 holds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Setting(NamedTuple):
    """What Theorem 2 wants fixed before the images are seen.

    ``limit``: C_θ, on ‖θ₁ − θ₀‖₂ of two classes and on ‖θ‖_F of more. ``radius``: C_δ. ``margin``: γ.
    """

    limit: float
    radius: float
    margin: float


def two_clouds(count: int, seed: int, size: int = 20, apart: float = 0.3) -> tuple[Tensor, Tensor]:
    """``count`` draws of two classes: Gaussian clouds around ±``apart``·e₁, scaled down to ‖x‖₂ ≤ 1 where longer.

    Returns:
        images (count, size) float64 and labels (count,) int64.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    images = 0.15 * torch.randn(count, size, generator=generator, dtype=torch.float64)
    images[:, 0] += apart * (2.0 * labels - 1)
    return images / images.norm(dim=1, keepdim=True).clamp(min=1.0), labels


def unlearned(
    images: Tensor, labels: Tensor, classes: int, setting: Setting, steps: int = 400
) -> tuple[Tensor, Tensor]:
    """min over ‖θ‖ ≤ C_θ of max over ‖δ‖ ≤ C_δ of the cross-entropy: alternating projected gradient steps from zero.

    Args:
        images: (n, d) float64.
        labels: (n,) int64 in [0, classes).

    Returns:
        θ (classes, d), and the δ (d,) that forty last ascent steps found.
    """
    theta = torch.zeros(classes, images.shape[1], dtype=torch.float64)
    delta = 1e-3 * torch.ones(images.shape[1], dtype=torch.float64)
    targets = torch.nn.functional.one_hot(labels, classes).double()
    rate = 2 / float(images.square().sum(dim=1).max())  # the inverse of the loss's smoothness
    for step in range(steps + 40):
        wrong = torch.softmax((images + delta) @ theta.T, dim=1) - targets
        uphill = wrong.mean(dim=0) @ theta
        if step < steps:
            theta = theta - rate * wrong.T @ (images + delta) / len(images)
            theta = theta * min(1.0, setting.limit / float(size(theta)))
        delta = delta + 0.5 * setting.radius * uphill / uphill.norm().clamp(min=1e-12)
        delta = delta * min(1.0, setting.radius / float(delta.norm()))
    return theta, delta


def size(theta: Tensor) -> Tensor:
    """What ``Setting.limit`` limits; at least 10⁻³⁰⁰."""
    limited = theta[1] - theta[0] if len(theta) == 2 else theta
    found: Tensor = limited.norm().clamp(min=1e-300)
    return found


def error(theta: Tensor, delta: Tensor, images: Tensor, labels: Tensor) -> float:
    """The share of images with δ whose label is not the argmax."""
    return float((((images + delta) @ theta.T).argmax(dim=1) != labels).double().mean())
