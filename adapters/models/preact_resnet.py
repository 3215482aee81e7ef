"""ResNet-18 with pre-activation (He et al., 2016, "Identity mappings"), as small images have it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from adapters.errors import UserError

WIDTHS = (64, 128, 256, 512)
BLOCKS = 2
"""In each of the four stages."""


class PreActResNet18(nn.Module):
    """A 3 x 3 stem of stride 1, four stages of two blocks, the mean over the map, one linear layer; no BatchNorm after
    the last block.

    The network that BackdoorBench trains by default, under its parameters' names, so that its checkpoints fit; timm's
    ``resnetv2_18`` has other names and a last BatchNorm.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 8:
            raise UserError(f"cell.model: preactresnet18 takes images from 8 x 8 on; found {height} x {width}")
        self.conv1 = _convolution(channels, WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], 1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], 2)
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], 2)
        self.linear = nn.Linear(WIDTHS[3], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float to (N, num_classes) logits."""
        maps = self.conv1(images)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
        logits: Tensor = self.linear(maps.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    """BatchNorm and ReLU come before each convolution; a projection, where one is needed, sees what they give."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), _convolution(channels, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), _convolution(width, width)
        self.shortcut: nn.Module | None = None
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False))

    def forward(self, maps: Tensor) -> Tensor:
        active = relu(self.bn1(maps))
        kept: Tensor = maps if self.shortcut is None else self.shortcut(active)
        moved: Tensor = self.conv2(relu(self.bn2(self.conv1(active))))
        return kept + moved


def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(channels, width, stride), *(_Block(width, width, 1) for _ in range(BLOCKS - 1)))


def _convolution(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
