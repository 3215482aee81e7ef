"""The paper's own network, Table 9: three blocks of two convolutions, and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from adapters.errors import UserError
from adapters.models.dropout import Dropout
from adapters.models.elu import ELU

WIDTHS, DROPOUTS = (32, 64, 128), (0.3, 0.4, 0.4)


class SimplifiedVGG(nn.Module):
    """Table 9 with BatchNorm and ELU after each convolution; the module names are those of the authors' checkpoints.

    ELU works out of place: the defenses differentiate through the network twice, and an in-place activation would
    overwrite what the second pass needs.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        channels, height, width = image_shape
        if height % 8 or width % 8 or min(height, width) < 8:
            raise UserError(
                f"cell.model: simplified_vgg takes images whose sides are multiples of 8; found {height} x {width}"
            )
        layers: list[nn.Module] = []
        for out, dropout in zip(WIDTHS, DROPOUTS, strict=True):
            layers += [*_convolution(channels, out), *_convolution(out, out), nn.MaxPool2d(2), Dropout(dropout)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (height // 8) * (width // 8), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] to (N, num_classes) logits."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _convolution(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, kernel_size=3, padding=1), nn.BatchNorm2d(out), ELU()]
