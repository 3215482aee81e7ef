"""Where in a network its feature maps arise: found by one forward pass, so that any architecture will do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adapters.errors import UserError

STAGES: dict[str, tuple[str, ...]] = {
    "SimplifiedVGG": ("features.5", "features.13", "features.21"),
    "ResNet": ("layer2", "layer3", "layer4"),
    "DenseNet": ("features.denseblock2", "features.denseblock3", "features.denseblock4"),
    "GoogLeNet": ("inception3b", "inception4e", "inception5b"),
    "ConvNeXt": ("stages.1", "stages.2", "stages.3"),
}
"""Class name of a network to the modules behind its last three stages; others are traced (``stages``)."""


class FeatureMap(NamedTuple):
    """The output of the module called ``name``: ``channels`` x ``height`` x ``width`` an image."""

    name: str
    channels: int
    height: int
    width: int


def trace(model: nn.Module, image: Tensor) -> list[FeatureMap]:
    """Feature maps of more than one pixel, in the order in which ``model``, in evaluation mode, completes them.

    ``image``: (1, C, H, W). A module that runs several times stands where it last ran.
    """
    found: dict[str, FeatureMap] = {}
    handles = []
    for name, module in model.named_modules():
        if name:

            def note(module: nn.Module, inputs: object, output: object, name: str = name) -> None:
                if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                    found.pop(name, None)
                    found[name] = FeatureMap(name, *output.shape[1:])

            handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def last(model: nn.Module, image: Tensor, key: str = "cell.defense.layer") -> str:
    """The name of the module whose output is the last feature map: what the last convolution's channels become."""
    maps = trace(model, image)
    if not maps:
        raise UserError(f"{key}: found none, and the network has no feature map; expected the name of a module")
    return maps[-1].name


def stages(model: nn.Module, image: Tensor, key: str = "cell.defense.layers") -> tuple[str, ...]:
    """The last feature map of each of the last three stages; fewer where the network has fewer resolutions.

    Families in ``STAGES`` have theirs by name. Elsewhere a stage is all maps of one resolution, and its last one
    the one completed last.
    """
    for family in type(model).__mro__:
        if family.__name__ in STAGES:
            return STAGES[family.__name__]
    by_resolution = {(one.height, one.width): one.name for one in trace(model, image)}
    if not by_resolution:
        raise UserError(f"{key}: found none, and the network has no feature map; expected names of modules")
    return tuple(by_resolution.values())[-3:]


def check_layers(model: nn.Module, names: Sequence[str], key: str) -> None:
    """Raise ``UserError`` unless ``model`` has a module of each name."""
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=6, cutoff=0.3) or known[:6]
            raise UserError(f"{key}: unknown module {name!r}; expected one of the network's, such as {', '.join(near)}")


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, the outputs of the modules called ``names``, by name, after each forward pass."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
            outputs[name] = output

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
