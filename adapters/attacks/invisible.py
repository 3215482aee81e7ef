"""l0 inv and l2 inv (Li et al., 2019): faint triggers that raise the activations tied to the target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adapters.attacks.fitting import FitContext, Pattern, Penultimate, descend, strongest
from adapters.attacks.settings import Count, Factor, Share

Loss = Callable[[Tensor, Tensor], Tensor]
"""(what is optimised, batch index) to a scalar."""


class _Anchors:
    """The penultimate activations best connected to the target, and how far images fall short of raising them.

    The shortfall of triggered images is the mean of (1 - f_j / (c a_j))^2 over images and anchors j, where a_j is the
    anchor's largest value on clean images and c the scale factor: Li et al.'s objective, each anchor in its own unit.
    """

    def __init__(self, context: FitContext, count: int, scale: float) -> None:
        self.probe = Penultimate(context.model)
        most = strongest(self.probe, context.images)
        connection = self.probe.connection(context.target) * most
        self.index = connection.topk(min(count, len(connection))).indices
        self.goal = scale * most[self.index]

    def shortfall(self, triggered: Tensor) -> Tensor:
        return (1 - self.probe(triggered)[0][:, self.index] / self.goal).square().mean()

    def report(self, triggered: Tensor) -> dict[str, object]:
        with torch.no_grad():
            return {"anchors": self.index.tolist(), "shortfall": float(self.shortfall(triggered))}


@dataclass(frozen=True)
class L2Invisible:
    """Minimise shortfall + weight * ||delta||^2 / (C H W), the trigger being clip(x + delta).

    From Gaussian noise. After each stage the weight of the l2 penalty is multiplied by the square of how far the root
    mean square of delta is from ``rms``, in pixels of [0, 1] (at most by 4 either way); in the end delta is scaled down
    to it where it is larger still: its l2 norm is at most ``rms`` times the root of C H W. Li et al. stop at a norm of
    their choice likewise; how the weight gets there is ours.
    """

    name: ClassVar[str] = "l2_inv"

    rms: Share = 0.04
    anchors: Count = 16
    scale: Factor = 4.0
    weight: Factor = 1.0
    stages: Count = 8
    steps: Count = 40
    rate: Factor = 0.01

    def __call__(self, context: FitContext) -> Pattern:
        anchors = _Anchors(context, self.anchors, self.scale)
        images = context.images
        noise = torch.randn(context.shape, generator=context.generator()).to(images)
        delta, weight = noise * self.rms, self.weight
        for stage in range(self.stages):
            if stage:
                weight *= min(4.0, max(0.25, (_rms(delta) / self.rms) ** 2))
            loss = _penalised(anchors, images, weight)
            delta = descend(delta, loss, lambda value: value.clamp(-1, 1), context, self.steps, self.rate)
        delta = delta * min(1.0, self.rms / max(_rms(delta), 1e-12))
        triggered = (images[next(context.batches(1))] + delta).clamp(0, 1)
        report = {"rms": _rms(delta), "weight": weight, **anchors.report(triggered)}
        return Pattern(images.new_ones(1, *context.shape[1:]), delta, report)


@dataclass(frozen=True)
class L0Invisible:
    """Minimise the shortfall over ever fewer pixels, the trigger being x * (1 - m) + p * m on the last of them.

    Minimising ||delta||_0 itself is a search over subsets. Li et al. optimise delta, fix the pixels of least effect
    at zero, and go on with the rest; so do we: each stage drops half of the pixels, those whose delta times the loss's
    gradient is smallest, until ``share`` of the image is left. The last stage optimises the colours of what is left
    as replacements, as the released masks of the I-BAU authors are used.
    """

    name: ClassVar[str] = "l0_inv"

    share: Share = 9 / 1024
    anchors: Count = 16
    scale: Factor = 4.0
    steps: Count = 40
    rate: Factor = 0.05

    def __call__(self, context: FitContext) -> Pattern:
        anchors = _Anchors(context, self.anchors, self.scale)
        images = context.images
        _, height, width = context.shape
        wanted = max(1, round(self.share * height * width))
        mask = images.new_ones(1, height, width)
        delta = 0.1 * torch.randn(context.shape, generator=context.generator()).to(images)
        while (left := int(mask.sum())) > wanted:
            loss = _added(anchors, images, mask)
            delta = descend(delta * mask, loss, lambda value: value.clamp(-1, 1), context, self.steps, self.rate)
            effect = self._effect(loss, delta, context).masked_fill(mask == 0, -1).flatten()
            kept = effect.topk(max(wanted, math.ceil(left / 2))).indices
            mask = torch.zeros_like(effect).index_fill_(0, kept, 1).view(1, height, width)
        start = (images.mean(dim=0) + delta).clamp(0, 1)
        loss = _replaced(anchors, images, mask)
        pixels = descend(start, loss, lambda value: value.clamp(0, 1), context, 2 * self.steps, self.rate)
        triggered = images[next(context.batches(1))] * (1 - mask) + pixels * mask
        return Pattern(1 - mask, pixels * mask, {"pixels": wanted, **anchors.report(triggered)})

    def _effect(self, loss: Loss, delta: Tensor, context: FitContext) -> Tensor:
        """(1, H, W): what the loss is expected to lose with each pixel, to first order, summed over channels."""
        value = delta.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(value, next(context.batches(1))), value)
        return (gradient * delta).abs().sum(dim=0, keepdim=True)


def _added(anchors: _Anchors, images: Tensor, mask: Tensor) -> Loss:
    return lambda value, index: anchors.shortfall((images[index] + value * mask).clamp(0, 1))


def _penalised(anchors: _Anchors, images: Tensor, weight: float) -> Loss:
    def loss(value: Tensor, index: Tensor) -> Tensor:
        return anchors.shortfall((images[index] + value).clamp(0, 1)) + weight * value.square().mean()

    return loss


def _replaced(anchors: _Anchors, images: Tensor, mask: Tensor) -> Loss:
    return lambda value, index: anchors.shortfall(images[index] * (1 - mask) + value * mask)


def _rms(delta: Tensor) -> float:
    return float(delta.square().mean().sqrt())
