"""Which of opacus' ways to the gradient of every single image works with a network."""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from adapters.defenses.tuning import autocast
from adapters.errors import UserError

Mode = Literal["hooks", "ew"]
MODES: tuple[Mode, ...] = ("hooks", "ew")
Precision = Literal["bfloat16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")

PHYSICAL_BATCH = 32
"""Images whose gradients are held at once on the CPU, where larger batches leave the cache; nowhere fewer."""
HELD_BYTES = 2**30
"""Of float32 gradients held at once on a GPU, which small batches leave idle; clipping takes about as much again."""


class Way(NamedTuple):
    """How opacus computes the gradient of each image, and the precision of the network's passes."""

    mode: Mode
    precision: Precision


def physical_batch(network: nn.Module, device: torch.device) -> int:
    """Of how many images gradients are held at once. How a batch is cut up changes sums by their rounding alone."""
    if device.type == "cpu":
        return PHYSICAL_BATCH
    each = 4 * sum(one.numel() for one in network.parameters() if one.requires_grad)
    return max(PHYSICAL_BATCH, HELD_BYTES // max(1, each))


def wrap(network: nn.Module, mode: Mode) -> Any:
    """``network`` as opacus' module that leaves ``grad_sample`` in each parameter; mean-reduced losses.

    ``hooks``: backward hooks on each layer, opacus' default; they cannot be combined with in-place additions, which
    timm's ResNets have. ``ew``: torch's expanded weights, which can, but know fewer operations.
    """
    from opacus.grad_sample import GradSampleModule, GradSampleModuleExpandedWeights

    kind = GradSampleModule if mode == "hooks" else GradSampleModuleExpandedWeights
    return kind(network, batch_first=True, loss_reduction="mean")


def backward_each(wrapped: Any, images: Tensor, labels: Tensor, precision: str) -> Tensor:
    """The mean cross-entropy of (n, C, H, W) ``images``, detached; leaves the float32 gradient of each image in
    ``grad_sample`` of each parameter of ``wrapped``, whatever the precision of the passes."""
    with autocast(images.device, precision):
        logits = wrapped(images)
    mean = nn.functional.cross_entropy(logits.float(), labels)
    torch.autograd.backward(mean)
    for parameter in wrapped.parameters():
        if isinstance(each := getattr(parameter, "grad_sample", None), Tensor):
            parameter.grad_sample = each.float()
    return mean.detach()


def choose_way(network: nn.Module, images: Tensor, labels: Tensor, mode: str, precision: str) -> Way:
    """The first way that gives a gradient of each image for every parameter; ``auto`` leaves a choice open.

    Bfloat16 comes before float32, and ``hooks`` before ``ew``, which knows no bfloat16.

    Raises:
        UserError: none works with this network, or not the one wanted; says why.
    """
    modes = MODES if mode == "auto" else (cast(Mode, mode),)
    precisions = PRECISIONS if precision == "auto" else (cast(Precision, precision),)
    faults = []
    for way in (Way(one, number) for number in precisions for one in modes):
        fault = _fault(network, images, labels, way)
        if fault is None:
            return way
        faults.append(f"{way.mode} in {way.precision}: {fault}")
    expected = "another model" if mode == precision == "auto" else "auto"
    raise UserError(
        f"cell.defense.grad_sample: found {mode!r} with precision {precision!r}, which does not work with this network"
        f" ({'; '.join(faults)}); expected {expected}"
    )


def _fault(network: nn.Module, images: Tensor, labels: Tensor, way: Way) -> str | None:
    trial = copy.deepcopy(network).train()
    try:
        backward_each(wrap(trial, way.mode), images, labels, way.precision)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    wrong = [
        name
        for name, one in trial.named_parameters()
        if one.requires_grad and getattr(getattr(one, "grad_sample", None), "shape", None) != (len(images), *one.shape)
    ]
    return f"no gradient of each image for {wrong[0]}" if wrong else None
