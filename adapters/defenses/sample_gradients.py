"""Which of opacus' ways to the gradient of every single image works with a network."""

from __future__ import annotations

import copy
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from adapters.errors import UserError

Mode = Literal["hooks", "ew"]
MODES: tuple[Mode, ...] = ("hooks", "ew")

PHYSICAL_BATCH = 64
"""Images whose gradients are held at once."""


def wrap(network: nn.Module, mode: Mode) -> Any:
    """``network`` as opacus' module that leaves ``grad_sample`` in each parameter; mean-reduced losses.

    ``hooks``: backward hooks on each layer, opacus' default; they cannot be combined with in-place additions, which
    timm's ResNets have. ``ew``: torch's expanded weights, which can, but know fewer operations.
    """
    from opacus.grad_sample import GradSampleModule, GradSampleModuleExpandedWeights

    kind = GradSampleModule if mode == "hooks" else GradSampleModuleExpandedWeights
    return kind(network, batch_first=True, loss_reduction="mean")


def choose_mode(network: nn.Module, images: Tensor, labels: Tensor, wanted: str) -> Mode:
    """``wanted``, or for ``auto`` the first mode that gives a gradient of each image for every parameter.

    Raises:
        UserError: no mode works with this network, or not the one wanted; says why.
    """
    tried: tuple[Mode, ...] = MODES if wanted == "auto" else (cast(Mode, wanted),)
    faults = []
    for mode in tried:
        fault = _fault(network, images, labels, mode)
        if fault is None:
            return mode
        faults.append(f"{mode}: {fault}")
    others = " or ".join(one for one in MODES if one not in tried) or "another model"
    raise UserError(
        f"cell.defense.grad_sample: found {wanted!r}, which does not work with this network ({'; '.join(faults)});"
        f" expected {others}"
    )


def _fault(network: nn.Module, images: Tensor, labels: Tensor, mode: Mode) -> str | None:
    trial = copy.deepcopy(network).train()
    try:
        wrapped = wrap(trial, mode)
        torch.autograd.backward(nn.functional.cross_entropy(wrapped(images), labels))
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    wrong = [
        name
        for name, one in trial.named_parameters()
        if one.requires_grad and getattr(getattr(one, "grad_sample", None), "shape", None) != (len(images), *one.shape)
    ]
    return f"no gradient of each image for {wrong[0]}" if wrong else None
