"""One pass of one image through a model, before anything else: what would fail later fails here, in plain words."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

CHANNELS = (1, 3)
"""What images have, as a rule."""


def probe(module: nn.Module, images: Tensor, labels: Tensor, *, channels_last: bool) -> bool:
    """Whether ``module`` is to be laid out channels-last: where that is wanted and it takes it.

    A network that calls ``view`` on what a convolution puts out does not, nor one with weights of five dimensions. The
    pass is of a copy, and hooks see it as they see any other.

    Args:
        module: (n, C, H, W) float to logits (n, num_classes).
        images: (n, C, H, W) float in [0, 1], n at least 1.
        labels: (n,) int64.

    Raises:
        ValueError: no plain module; no parameter that takes a gradient; images of another dtype or device than the
            parameters, or with their channels last; an output that is no tensor (n, num_classes); labels that are none
            of these classes.
    """
    _check_kind(module)
    _check_parameters(module, images)
    if channels_last:
        try:
            logits = _logits(module, images, torch.channels_last)
        except RuntimeError:
            channels_last = False
    if not channels_last:
        try:
            logits = _logits(module, images, torch.contiguous_format)
        except RuntimeError as error:
            if images.shape[3] in CHANNELS and images.shape[1] not in CHANNELS:
                message = f"images: found shape {tuple(images.shape)}; expected (n, C, H, W), channels before rows"
                raise ValueError(message) from error
            raise
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: found an output of {found} for one image; expected logits (1, num_classes)")
    highest = int(labels.max())
    if highest >= logits.shape[1]:
        raise ValueError(f"labels: found {highest}; expected 0 to {logits.shape[1] - 1}, the model's classes")
    return channels_last


def _check_kind(module: object) -> None:
    if isinstance(module, nn.DataParallel):
        raise ValueError("model: found DataParallel; expected the module in it, model.module")
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"model: found {type(module).__name__}; expected a plain torch.nn.Module")


def _check_parameters(module: nn.Module, images: Tensor) -> None:
    parameters = list(module.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            f"model: found {len(parameters)} parameters, none of which takes a gradient; expected some (frozen ones, "
            "requires_grad False, stay as they are)"
        )
    kinds = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
    if images.dtype not in kinds:
        expected = " or ".join(sorted(map(str, kinds)))
        raise ValueError(f"images: found {images.dtype}; expected {expected}, as the model's parameters are")
    devices = {parameter.device for parameter in parameters}
    if images.device not in devices:
        expected = " or ".join(sorted(map(str, devices)))
        raise ValueError(f"images: found them on {images.device}; expected {expected}, as the model's parameters are")


def _logits(module: nn.Module, images: Tensor, layout: torch.memory_format) -> object:
    copied = copy.deepcopy(module).eval()
    copied = copied.to(memory_format=layout) if layout is torch.channels_last else copied
    with torch.no_grad():
        return copied(images[:1].contiguous(memory_format=layout))
