"""torchvision's GoogLeNet under timm's roof, which has none: importing this module registers it."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

from adapters.compat import import_timm, import_torchvision
from adapters.errors import UserError

_vision = import_torchvision("torchvision.models.googlenet")
_timm = import_timm("timm.models")


class ConvBlock(nn.Module):
    """torchvision's ``BasicConv2d``, with its names and constants, but the ReLU out of place (``simplified_vgg``)."""

    def __init__(self, in_channels: int, out_channels: int, **settings: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, bias=False, **settings)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(images)))


@_timm.register_model  # type: ignore[untyped-decorator]
def googlenet(pretrained: bool = False, **settings: Any) -> nn.Module:
    """GoogLeNet without auxiliary classifiers, for inputs in [0, 1] as they are; parameters named as torchvision's.

    ``settings``: ``num_classes``, ``in_chans``, ``drop_rate`` as timm's models take them. Raises ``UserError`` for
    ``pretrained``: no weights are downloaded here.
    """
    if pretrained:
        raise UserError("cell.model: googlenet has no pretrained weights here; found pretrained=True")
    known = {key: settings.pop(key) for key in ("num_classes", "in_chans", "drop_rate") if key in settings}
    unused = sorted(key for key, value in settings.items() if value is not None and not key.startswith("pretrained_"))
    if unused:
        raise TypeError(f"googlenet takes num_classes, in_chans and drop_rate; found {', '.join(unused)}")
    inception = functools.partial(_vision.Inception, conv_block=ConvBlock)
    network: Any = _vision.GoogLeNet(
        num_classes=known.get("num_classes", 1000),
        aux_logits=False,
        transform_input=False,
        init_weights=False,
        blocks=[ConvBlock, inception, _vision.InceptionAux],
        dropout=known.get("drop_rate", 0.2),
    )
    if known.get("in_chans", 3) != 3:
        network.conv1 = ConvBlock(known["in_chans"], 64, kernel_size=7, stride=2, padding=3)
    _initialise(network)
    return cast(nn.Module, network)


def _initialise(network: nn.Module) -> None:
    """He initialisation, as timm gives its ResNets; torchvision's (normal of 0.01) barely trains without a warm-up."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
