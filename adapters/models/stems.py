"""The 32 x 32 stems: networks made for 224 x 224 throw small images away in their first layers.

A family's stem is fitted after the network is built, so that every variant of it (deep stems, wide ones, any number
of input channels) goes through the same few lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class Enlarged(nn.Module):
    """``network`` on images enlarged (bilinear) to ``size``, (height, width): the last resort, and a costly one."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] to (N, num_classes) logits."""
        logits: Tensor = self.network(interpolate(images, self.size, mode="bilinear", align_corners=False))
        return logits


def fit_to_small_images(model: nn.Module) -> None:
    """Give ``model`` its family's stem for images under 64 pixels, in place.

    ResNet, pre-activation ResNet, DenseNet, GoogLeNet: a 3 x 3 stem of stride 1 and no pooling behind it, so that 32
    pixels end as 4. ConvNeXt: a 3 x 3 stem of stride 1 instead of 4 x 4 patches. VGG: a head without the 7 x 7
    convolution. RegNet, MobileNet, EfficientNet: a first stride of 1.
    Families that are not listed are left as they are.
    """
    for family in type(model).__mro__:
        if family.__name__ in FAMILIES:
            FAMILIES[family.__name__](model)
            return


def small_image_settings(name: str) -> dict[str, Any]:
    """Settings of a vision transformer for small images: patches of 4 pixels, so that 32 x 32 makes 64 of them."""
    for pattern, settings in TRANSFORMERS.items():
        if re.match(pattern, name):
            return settings
    return {}


TRANSFORMERS: dict[str, dict[str, Any]] = {
    r"(vit|deit3?|beit|beitv2|eva|eva02|cait|xcit|mixer)_.*patch\d+": {"patch_size": 4},
    r"swin(v2)?_.*window\d+": {"patch_size": 2, "window_size": 4},
}
"""Start of a timm name to the settings that its entry point takes."""


def _resnet(model: Any) -> None:
    _gentle(model.conv1)
    model.maxpool = nn.Identity()


def _resnet_v2(model: Any) -> None:
    _gentle(model.stem.conv if hasattr(model.stem, "conv") else model.stem.conv1)
    for layer in ("pad", "pool"):
        if hasattr(model.stem, layer):
            setattr(model.stem, layer, nn.Identity())


def _densenet(model: Any) -> None:
    _gentle(model.features.conv0)
    model.features.pool0 = nn.Identity()


def _googlenet(model: Any) -> None:
    _gentle(model.conv1.conv)
    model.maxpool1 = nn.Identity()


def _vgg(model: Any) -> None:
    """timm's head enlarges the last 1 x 1 map to 7 x 7 and convolves 49 copies of it: one is enough."""
    _reshape(model.pre_logits.fc1, kernel=1)
    model.pre_logits.input_kernel_size = 1


def _conv_stem(model: Any) -> None:
    _gentle(model.conv_stem)


def _regnet(model: Any) -> None:
    _gentle(model.stem.conv if hasattr(model.stem, "conv") else model.stem)


def _convnext(model: Any) -> None:
    for layer in model.stem:
        if isinstance(layer, nn.Conv2d):
            _gentle(layer)


FAMILIES: dict[str, Callable[[Any], None]] = {
    "ResNet": _resnet,
    "ResNetV2": _resnet_v2,
    "DenseNet": _densenet,
    "GoogLeNet": _googlenet,
    "VGG": _vgg,
    "ConvNeXt": _convnext,
    "RegNet": _regnet,
    "EfficientNet": _conv_stem,
    "MobileNetV3": _conv_stem,
}
"""Class name of timm's or torchvision's network to what fits it."""


def _gentle(stem: nn.Module) -> None:
    """Give a stem stride 1, in place: 7 x 7 becomes 3 x 3, the first convolution of a deep stem is 3 x 3 already."""
    while isinstance(stem, nn.Sequential):
        stem = stem[0]
    if not isinstance(stem, nn.Conv2d):
        raise TypeError(f"a stem of {type(stem).__name__} is not known")
    stem.stride = (1, 1)
    if stem.kernel_size != (3, 3):
        _reshape(stem, kernel=3)


def _reshape(convolution: nn.Conv2d, kernel: int) -> None:
    """Another kernel size, newly initialised; in place, so that a subclass (weight standardisation) stays one."""
    old = convolution.weight
    weight = torch.empty(*old.shape[:2], kernel, kernel, dtype=old.dtype, device=old.device)
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    convolution.weight = nn.Parameter(weight)
    convolution.kernel_size, convolution.padding = (kernel, kernel), (kernel // 2, kernel // 2)
