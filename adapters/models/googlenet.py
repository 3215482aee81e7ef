"""torchvision's GoogLeNet under timm's roof, which has none: importing this module registers it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from adapters.compat import import_timm, import_torchvision
from adapters.errors import UserError

_vision = import_torchvision("torchvision.models.googlenet")
_timm = import_timm("timm.models")


class ConvBlock(_vision.BasicConv2d):  # type: ignore[misc]
    """torchvision's convolution, BatchNorm and ReLU, with the ReLU out of place (see ``simplified_vgg``)."""

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
    network: nn.Module = _vision.GoogLeNet(
        num_classes=known.get("num_classes", 1000),
        aux_logits=False,
        transform_input=False,
        init_weights=False,
        blocks=[ConvBlock, inception, _vision.InceptionAux],
        dropout=known.get("drop_rate", 0.2),
    )
    _initialise(network)
    channels = known.get("in_chans", 3)
    if channels != 3:
        network.conv1 = ConvBlock(channels, 64, kernel_size=7, stride=2, padding=3)
    return network


def _initialise(network: nn.Module) -> None:
    """He initialisation, as timm gives its ResNets; torchvision's (normal of 0.01) barely trains without a warm-up."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
