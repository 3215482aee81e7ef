"""The 32 x 32 stems: networks made for 224 x 224 throw small images away in their first layers.

A family's stem is fitted after the network is built, so that every variant of it (deep stems, wide ones, any number
of input channels) goes through the same few lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

ImageShape = tuple[int, int, int]


def fit_to_small_images(model: nn.Module, image_shape: ImageShape) -> None:
    """Give ``model`` its family's stem for images under 64 pixels, in place.

    ResNet, pre-activation ResNet, DenseNet, GoogLeNet: a 3 x 3 stem of stride 1 and no pooling behind it, so that 32
    pixels end as 4. VGG: a head without the 7 x 7 convolution. MobileNet, EfficientNet: a first stride of 1.
    Families that are not listed are left as they are.
    """
    for family in type(model).__mro__:
        if family.__name__ in FAMILIES:
            FAMILIES[family.__name__](model)
            return


def small_image_settings(name: str) -> dict[str, Any]:
    """Settings of a vision transformer for small images: patches of 4 pixels, 64 of them on 32 x 32."""
    return {"patch_size": 4} if re.match(r"(vit|deit3?|beit|beitv2|eva|eva02|cait|xcit|mixer)_.*patch\d+", name) else {}


def _resnet(model: Any) -> None:
    model.conv1 = _gentle(model.conv1)
    model.maxpool = nn.Identity()


def _resnet_v2(model: Any) -> None:
    model.stem.conv = _gentle(model.stem.conv) if hasattr(model.stem, "conv") else model.stem.conv
    if hasattr(model.stem, "pool"):
        model.stem.pool = nn.Identity()


def _densenet(model: Any) -> None:
    model.features.conv0 = _gentle(model.features.conv0)
    model.features.pool0 = nn.Identity()


def _googlenet(model: Any) -> None:
    model.conv1.conv = _gentle(model.conv1.conv)
    model.maxpool1 = nn.Identity()


def _vgg(model: Any) -> None:
    """timm's head enlarges the last 1 x 1 map to 7 x 7 and convolves 49 copies of it: one is enough."""
    old = model.pre_logits
    new = nn.Conv2d(old.fc1.in_channels, old.fc1.out_channels, kernel_size=1)
    _he(new)
    old.fc1, old.input_kernel_size = new, 1


def _conv_stem(model: Any) -> None:
    model.conv_stem = _gentle(model.conv_stem)


FAMILIES: dict[str, Callable[[Any], None]] = {
    "ResNet": _resnet,
    "ResNetV2": _resnet_v2,
    "DenseNet": _densenet,
    "GoogLeNet": _googlenet,
    "VGG": _vgg,
    "EfficientNet": _conv_stem,
    "MobileNetV3": _conv_stem,
}
"""Class name of timm's or torchvision's network to what fits it."""


def _gentle(stem: nn.Module) -> nn.Module:
    """A stem of stride 1: 7 x 7 becomes 3 x 3, a deep stem's first 3 x 3 keeps its size."""
    if isinstance(stem, nn.Sequential):
        stem[0] = _gentle(stem[0])
        return stem
    if not isinstance(stem, nn.Conv2d):
        raise TypeError(f"a stem of {type(stem).__name__} is not known")
    if stem.kernel_size == (3, 3):
        stem.stride = (1, 1)
        return stem
    new = nn.Conv2d(stem.in_channels, stem.out_channels, kernel_size=3, padding=1, bias=stem.bias is not None)
    _he(new)
    return new


def _he(convolution: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
