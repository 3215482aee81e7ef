"""What an optimised trigger is fitted with: a clean model, images, the labels wanted; and the parts fits share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

_BATCH = 32


class Pattern(NamedTuple):
    """What a fit finds: the trigger is ``clip(x * keep + pattern)``.

    ``keep``: (1 or C, H, W) float32 in [0, 1]; ``pattern``: (C, H, W) float32 in [-1, 1]; ``report``: JSON-able, what
    the fit chose and reached.
    """

    keep: Tensor
    pattern: Tensor
    report: Mapping[str, Any]


@dataclass(frozen=True)
class FitContext:
    """What the attacker has: a clean model of the data set, training images, and the labels they are to get.

    ``model`` is in evaluation mode and on the images' device; a fit leaves it as it is. ``images``: (n, C, H, W)
    float32 in [0, 1], of classes that the attack changes; ``wanted``: (n,) int64, what each is to be taken for.
    ``seed`` is the root of every random choice, drawn on the CPU.
    """

    model: nn.Module = field(repr=False)
    images: Tensor = field(repr=False)
    wanted: Tensor = field(repr=False)
    seed: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def target(self) -> int | None:
        """The one label wanted; None where several are (all-to-all)."""
        first = self.wanted[0]
        return int(first) if bool((self.wanted == first).all()) else None

    def generator(self) -> torch.Generator:
        """A new generator, on the CPU: random starts are the same on every device."""
        return torch.Generator().manual_seed(self.seed)

    def batches(self, steps: int) -> Iterator[Tensor]:
        """``steps`` index batches (b,) on the images' device, walking through fresh shuffles."""
        generator, count = self.generator(), len(self.images)
        size = min(_BATCH, count)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(count, generator=generator)
            yield order[:size].to(self.images.device)
            order = order[size:]


class Fit(Protocol):
    """An optimised trigger before it is fitted: a frozen dataclass whose fields are its settings."""

    name: ClassVar[str]

    def __call__(self, context: FitContext) -> Pattern:
        """The trigger's pattern, on the CPU; a function of the context alone."""
        ...


class Penultimate:
    """Reads the inputs of a classifier's last linear layer, the activations its logits are made of."""

    def __init__(self, model: nn.Module) -> None:
        heads = [one for one in model.modules() if isinstance(one, nn.Linear)]
        if not heads:
            raise ValueError(
                f"expected a network that ends in a linear layer, found {type(model).__name__} without any"
            )
        self._model, self._head = model, heads[-1]

    @property
    def weights(self) -> Tensor:
        """(classes, F): how each activation is connected to each class."""
        return self._head.weight.detach().float()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Activations (n, F) and logits (n, classes), both differentiable in ``images``."""
        seen: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self._model(images)
        finally:
            handle.remove()
        return seen[-1].flatten(1), logits

    def connection(self, target: int | None) -> Tensor:
        """(F,): how much an activation speaks for ``target``, over the mean of the other classes.

        Without a single target: the sum of its absolute weights, the criterion of Liu et al. (2018b).
        """
        if target is None:
            return self.weights.abs().sum(dim=0)
        others = (self.weights.sum(dim=0) - self.weights[target]) / max(1, len(self.weights) - 1)
        return self.weights[target] - others


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradient of the parameters inside: only the trigger is optimised."""
    required = [(one, one.requires_grad) for one in model.parameters()]
    for one, _ in required:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one, before in required:
            one.requires_grad_(before)


def strongest(probe: Penultimate, images: Tensor) -> Tensor:
    """(F,): the largest value of each activation on clean images; at least a thousandth of the largest of all."""
    with torch.no_grad():
        parts = [probe(batch)[0].amax(dim=0) for batch in images.split(_BATCH)]
    highest = torch.stack(parts).amax(dim=0)
    return highest.clamp_min(max(1e-6, 1e-3 * float(highest.max())))


def descend(
    start: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    project: Callable[[Tensor], Tensor],
    context: FitContext,
    steps: int,
    rate: float,
) -> Tensor:
    """Adam on ``loss(value, batch index)`` from ``start``, ``project`` applied after each of ``steps``."""
    value = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([value], lr=rate)
    for index in context.batches(steps):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss(value, index), inputs=[value])
        optimizer.step()
        with torch.no_grad():
            value.copy_(project(value))
    return value.detach()


def fooled(context: FitContext, keep: Tensor, pattern: Tensor) -> float:
    """The share of the images that the clean model takes for what is wanted, once they carry the trigger."""
    hits = 0
    with torch.no_grad():
        for images, wanted in zip(context.images.split(_BATCH), context.wanted.split(_BATCH), strict=True):
            hits += int((context.model((images * keep + pattern).clamp(0, 1)).argmax(dim=1) == wanted).sum())
    return hits / len(context.images)
