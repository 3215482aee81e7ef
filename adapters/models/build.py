"""A network by its name, fitted to the number of classes and the size of the images."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from adapters.compat import import_timm
from adapters.errors import UserError
from adapters.models.simplified_vgg import SimplifiedVGG
from adapters.models.stems import fit_to_small_images, small_image_settings
from adapters.registry import add

ImageShape = tuple[int, int, int]

SMALL = 64
"""Images with shorter sides than this get the small stem; from here on a network is built as its authors did."""

MODELS: dict[str, Callable[[int, ImageShape], nn.Module]] = {}
"""Networks of this project: name to ``(num_classes, image_shape) -> module``. timm's stand beside them."""


def build(name: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    """A freshly initialised network, in training mode, on the CPU, drawn from torch's global generator.

    Every activation works out of place, so that it can be differentiated twice and by ``torch.func``. Nothing is
    downloaded. ``image_shape`` is (C, H, W); images shorter than 64 pixels get the stem that suits them
    (``adapters.models.stems``). Raises ``UserError`` for an unknown name or a shape that the network cannot take.
    """
    check_name(name)
    if name in MODELS:
        return MODELS[name](num_classes, image_shape)
    return _out_of_place(_build_timm(name, num_classes, image_shape))


def check_name(name: str) -> None:
    """Raise ``UserError`` unless ``name`` is one of ``MODELS`` or a name that timm knows."""
    if name in MODELS:
        return
    timm = import_timm()
    # timm's own check passes over "hf-hub:" and other addresses, which would download.
    if ":" in name or "/" in name or not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        near = f", such as {', '.join(close)}" if close else ""
        raise UserError(
            f"cell.model: unknown name {name!r}; expected one of: {', '.join(sorted(MODELS))}, googlenet, or any name "
            f"of timm.list_models(){near}"
        )


def _build_timm(name: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    timm = import_timm()
    channels, height, width = image_shape
    settings: dict[str, Any] = {"pretrained": False, "num_classes": num_classes, "in_chans": channels}
    small = min(height, width) < SMALL
    try:
        model: nn.Module = timm.create_model(name, **settings, **_size_settings(name, image_shape, small))
        if small:
            fit_to_small_images(model, image_shape)
        _try_out(model, num_classes, image_shape)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise UserError(
            f"cell.model: {name} does not take {channels} x {height} x {width} images "
            f"({type(error).__name__}: {error}); expected a network whose input size is free"
        ) from error
    return model


def _size_settings(name: str, image_shape: ImageShape, small: bool) -> dict[str, Any]:
    """Settings of the networks, most of them transformers, that are built for one size of image."""
    timm_models = import_timm("timm.models")
    cfg = timm_models.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None or not cfg.fixed_input_size:
        return {}
    height, width = image_shape[1:]
    return {"img_size": (height, width), **(small_image_settings(name) if small else {})}


def _try_out(model: nn.Module, num_classes: int, image_shape: ImageShape) -> None:
    """One forward pass of two black images: the sizes fit, or it raises."""
    training = model.training
    with torch.no_grad():
        logits = model.eval()(torch.zeros(2, *image_shape))
    model.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        raise ValueError(f"its output is not (N, {num_classes})")


def _out_of_place(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if getattr(module, "inplace", None) is True:
            module.inplace = False
    return model


add(MODELS, "simplified_vgg", SimplifiedVGG)
