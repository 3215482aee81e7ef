"""Attention maps of feature maps, and how far two networks' attention is apart (Li et al., ICLR 2021)."""

from __future__ import annotations

from torch import Tensor


def attention_map(features: Tensor, power: float) -> Tensor:
    """(N, C, H, W) to (N, HW): Σ_c |F_c|^p, equation (1) with its sum over channels, divided by its own ℓ2 norm."""
    energy: Tensor = features.float().abs().pow(power).sum(dim=1).flatten(1)
    norm: Tensor = energy.norm(dim=1, keepdim=True)
    return energy / norm.clamp_min(1e-6)


def attention_loss(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """Mean squared difference of the normalised maps, a scalar.

    Equation (2) of the paper has the ℓ2 norm of the difference; the authors' code, whose weights are ours, the mean
    square.
    """
    difference = attention_map(student, power) - attention_map(teacher, power)
    return difference.square().mean()
