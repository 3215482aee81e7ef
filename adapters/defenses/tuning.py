"""Training on the clean set: the one loop under fine-tuning, unlearning, distillation and what follows pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.protocols import DefenseContext, DefenseResult, LabelledImages
from adapters.training_step import TrainingStep, descent

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, images, labels) to a scalar float32 loss."""
Change = Callable[[Tensor], Tensor]
"""A mini-batch of images to the images trained on: (n, C, H, W) float in [0, 1], both."""


@dataclass(frozen=True)
class Tuning:
    """SGD over mini-batches that are reshuffled each epoch. ``schedule``: the factor on ``lr`` in each epoch from 0.

    ``batch_norm``: ``train`` lets BatchNorm's statistics follow the clean set, and dropout is on; ``eval`` neither.
    A last mini-batch of one image is skipped where there is another, since BatchNorm cannot normalise it.
    """

    epochs: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 128
    batch_norm: Literal["train", "eval"] = "train"
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    nesterov: bool = False
    schedule: Callable[[int], float] = lambda epoch: 1.0


class Ending(NamedTuple):
    """How a tuning ended: ``status`` is ``ok``, ``diverged`` or ``timeout``; ``rounds`` is the next round's index."""

    status: str
    reason: str | None
    rounds: int


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Network passes in bfloat16 inside, unless ``precision`` is ``float32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy whose every parameter takes a gradient, channels-last."""
    copied = copy.deepcopy(model).requires_grad_(True)
    return copied.to(memory_format=torch.channels_last)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters take no gradient, channels-last."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    return copied.to(memory_format=torch.channels_last)


def restore_flags(copied: nn.Module, original: nn.Module) -> None:
    """Give ``copied`` the ``requires_grad`` of ``original``, and no gradients."""
    for mine, theirs in zip(copied.parameters(), original.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
        mine.grad = None


@contextmanager
def seeded(context: DefenseContext) -> Iterator[torch.Generator]:
    """Seed torch's global generators (dropout) inside and restore them after; yields the CPU generator for the rest."""
    devices = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(context.seed)
        yield torch.Generator().manual_seed(context.seed)


def tune(
    model: nn.Module,
    clean: LabelledImages,
    tuning: Tuning,
    context: DefenseContext,
    generator: torch.Generator,
    *,
    loss: Loss | None = None,
    change: Change | None = None,
    first_round: int = 0,
    info: Mapping[str, Any] | None = None,
) -> Ending:
    """Train ``model`` in place; reports a round an epoch, and leaves it in evaluation mode.

    Stops after the mini-batch in which the time runs out. The loss is looked at where an epoch ends, that of its last
    mini-batch alone: where it is not finite, tuning has ``diverged`` and stops. A look after each would have a device
    waited for.

    Args:
        loss: cross-entropy of the model's logits by default.
        change: done to the images of each mini-batch first.
        info: JSON-able, added to each round's.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=tuning.lr, momentum=tuning.momentum, weight_decay=tuning.weight_decay,
        nesterov=tuning.nesterov,
    )  # fmt: skip
    work = descent(model, loss or cross_entropy(tuning.precision))
    step = TrainingStep(work, model.parameters(), clean.images.device, context.passes)
    for epoch in range(tuning.epochs):
        optimizer.param_groups[0]["lr"] = tuning.lr * tuning.schedule(epoch)
        model.train(tuning.batch_norm == "train")
        last = torch.zeros((), device=clean.images.device)
        late = False
        for images, labels in _batches(clean, tuning.batch_size, generator):
            (last,) = step(images if change is None else change(images), labels)
            optimizer.step()
            late = context.out_of_time()
            if late:
                break
        model.eval()
        index = first_round + epoch
        if not bool(last.isfinite()):
            return Ending("diverged", "the loss was not finite", index)
        context.on_round(model, {"index": index, "loss": float(last), **(info or {})})
        if late:
            return Ending("timeout", f"stopped in epoch {epoch + 1} of {tuning.epochs}", index + 1)
    return Ending("ok", None, first_round + tuning.epochs)


def cross_entropy(precision: str) -> Loss:
    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with autocast(images.device, precision):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels)

    return loss


def tuned_result(
    tuned: nn.Module, original: nn.Module, ending: Ending, details: Mapping[str, Any] | None = None
) -> DefenseResult:
    """What a defense returns after ``tune``: the tuned model, or the original one where tuning diverged."""
    if ending.status == "diverged":
        return DefenseResult(copy.deepcopy(original).eval(), "diverged", ending.reason, details or {})
    restore_flags(tuned, original)
    return DefenseResult(tuned.eval(), ending.status, ending.reason, details or {})


def _batches(clean: LabelledImages, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(clean.labels), generator=generator).to(clean.images.device)
    for index in order.split(batch_size):
        if len(index) == 1 and len(order) > 1:
            continue
        yield clean.images[index].contiguous(memory_format=torch.channels_last), clean.labels[index]
