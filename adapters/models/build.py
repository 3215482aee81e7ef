"""A network by its name, fitted to the number of classes and the size of the images."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from adapters.compat import import_timm
from adapters.errors import UserError
from adapters.models.normalised import normalised, split
from adapters.models.preact_resnet import PreActResNet18
from adapters.models.simplified_vgg import SimplifiedVGG
from adapters.models.stems import Enlarged, fit_to_small_images, small_image_settings
from adapters.registry import add

log = logging.getLogger(__name__)

ImageShape = tuple[int, int, int]

SMALL = 64
"""Images with shorter sides than this get the small stem; from here on a network is built as its authors did."""

# What a network raises that cannot take a shape: sizes that vanish, settings it does not know, its own assertions.
_UNFIT = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)

MODELS: dict[str, Callable[[int, ImageShape], nn.Module]] = {}
"""Networks of this project: name to ``(num_classes, image_shape) -> module``. timm's stand beside them."""


def build(name: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    """A freshly initialised network, in training mode, on the CPU, drawn from torch's global generator.

    Every activation works out of place, so that it can be differentiated twice and by ``torch.func``. Nothing is
    downloaded. ``image_shape`` is (C, H, W); images shorter than 64 pixels get the stem that suits them
    (``adapters.models.stems``), and where a network cannot take them, they are enlarged inside it. ``name`` may end in
    the normalisation that the network was trained with (``adapters.models.normalised``). Raises ``UserError`` for an
    unknown name or a network that is no image classifier.
    """
    check_name(name)
    own, given = split(name)
    if own in MODELS:
        network = MODELS[own](num_classes, image_shape)
    else:
        network = _out_of_place(_build_timm(own, num_classes, image_shape))
    return normalised(network, given, image_shape[0])


def check_name(name: str) -> None:
    """Raise ``UserError`` unless ``name`` is one of ``MODELS`` or a name that timm knows, normalisation or not."""
    name, _ = split(name)
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
    """The network fitted to the images where it can be, otherwise the images enlarged to what it was made for."""
    try:
        return _fitted(name, num_classes, image_shape)
    except _UNFIT as error:
        first = error
    try:
        model = _enlarging(name, num_classes, image_shape)
    except _UNFIT as error:
        raise UserError(
            f"cell.model: {name} does not take {' x '.join(map(str, image_shape))} images ({type(first).__name__}: "
            f"{first}), nor enlarged ({type(error).__name__}: {error}); expected an image classifier"
        ) from error
    log.warning("%s cannot take %s images (%s): they are enlarged to %s inside", name, image_shape, first, model.size)
    return model


def _fitted(name: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    small = min(image_shape[1:]) < SMALL
    model: nn.Module = import_timm().create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=image_shape[0], **_size_settings(name, image_shape)
    )
    if small:
        fit_to_small_images(model)
    _try_out(model, num_classes, image_shape)
    return model


def _enlarging(name: str, num_classes: int, image_shape: ImageShape) -> Enlarged:
    network = import_timm().create_model(name, pretrained=False, num_classes=num_classes, in_chans=image_shape[0])
    _, height, width = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    model = Enlarged(network, (height, width))
    _try_out(model, num_classes, image_shape)
    return model


def _size_settings(name: str, image_shape: ImageShape) -> dict[str, Any]:
    """Settings of the networks, most of them transformers, that are built for one size of image."""
    cfg = import_timm("timm.models").get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None or not cfg.fixed_input_size:
        return {}
    small = min(image_shape[1:]) < SMALL
    return {"img_size": image_shape[1:], **(small_image_settings(name) if small else {})}


def _try_out(model: nn.Module, num_classes: int, image_shape: ImageShape) -> None:
    """One forward pass of two black images: the sizes fit, or it raises."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, *image_shape))
    model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        raise ValueError(f"its output is not (N, {num_classes})")


def _out_of_place(model: nn.Module) -> nn.Module:
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if getattr(layer, "inplace", None) is True:
            layer.inplace = False
    return model


add(MODELS, "simplified_vgg", SimplifiedVGG)
add(MODELS, "preactresnet18", PreActResNet18)
