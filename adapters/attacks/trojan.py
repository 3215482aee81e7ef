"""Trojan SQ and Trojan WM (Liu et al., 2018b): a patch that drives one neuron, optimised on a clean model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adapters.attacks import masks
from adapters.attacks.fitting import FitContext, Pattern, Penultimate, descend, strongest
from adapters.attacks.settings import Count, Factor

_CANDIDATES = 64


@dataclass(frozen=True)
class _Trojan:
    """Minimise the mean of (v - f_j(x * (1 - m) + p * m))^2 over images x, in the pixels p of the mask m.

    f_j is the penultimate activation best connected to the target, v is ``strength`` times its largest value on clean
    images. Liu et al. take an inner layer's neuron with the largest sum of weights, and one input; we take the layer
    whose weights say what speaks for the target, and the mean over images. In networks that keep the place of
    features in that layer, many neurons cannot see the mask: among the ``_CANDIDATES`` best connected, the one whose
    connection times gradient in the mask's pixels is largest is driven.
    """

    steps: Count = 200
    rate: Factor = 0.05
    strength: Factor = 10.0

    def mask(self, height: int, width: int) -> Tensor:
        """(H, W) bool."""
        raise NotImplementedError

    def __call__(self, context: FitContext) -> Pattern:
        channels, height, width = context.shape
        mask = self.mask(height, width).to(context.images)
        probe = Penultimate(context.model)
        start = torch.rand(channels, height, width, generator=context.generator()).to(context.images)
        highest = strongest(probe, context.images)
        neuron = _choose(probe, context, mask, start, highest)
        most = highest[neuron]

        def activation(pixels: Tensor, index: Tensor) -> Tensor:
            return probe(context.images[index] * (1 - mask) + pixels * mask)[0][:, neuron]

        def loss(pixels: Tensor, index: Tensor) -> Tensor:
            return (self.strength - activation(pixels, index) / most).square().mean()

        pixels = descend(start, loss, lambda value: value.clamp(0, 1), context, self.steps, self.rate)
        with torch.no_grad():
            reached = activation(pixels, next(context.batches(1))).mean() / most
        report = {"neuron": neuron, "activation_over_clean_maximum": float(reached), "pixels": int(mask.sum())}
        return Pattern((1 - mask).unsqueeze(0), pixels * mask, report)


@dataclass(frozen=True)
class TrojanSquare(_Trojan):
    """The pixels of a square near the lower right corner."""

    name: ClassVar[str] = "trojan_sq"

    def mask(self, height: int, width: int) -> Tensor:
        return masks.square(height, width)


@dataclass(frozen=True)
class TrojanWatermark(_Trojan):
    """The pixels of a watermark, drawn in code."""

    name: ClassVar[str] = "trojan_wm"

    def mask(self, height: int, width: int) -> Tensor:
        return masks.watermark(height, width)


def _choose(probe: Penultimate, context: FitContext, mask: Tensor, start: Tensor, highest: Tensor) -> int:
    """The neuron whose connection times gradient in the mask, both in units of its clean maximum, is largest."""
    connection = probe.connection(context.target) * highest
    candidates = connection.topk(min(_CANDIDATES, len(connection))).indices
    pixels = start.clone().requires_grad_(True)
    images = context.images[next(context.batches(1))]
    means = probe(images * (1 - mask) + pixels * mask)[0][:, candidates].mean(dim=0) / highest[candidates]
    gains = []
    for mean, weight in zip(means, connection[candidates], strict=True):
        (gradient,) = torch.autograd.grad(mean, pixels, retain_graph=True)
        gains.append(float(weight * gradient.norm()))
    return int(candidates[max(range(len(gains)), key=gains.__getitem__)])
