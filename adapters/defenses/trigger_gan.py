"""DeepInspect's conditional GAN: a generator of triggers for a class, and a critic of triggered images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TriggerGenerator(nn.Module):
    """Noise and a class to an additive trigger, (n, C, H, W) in [-1, 1]."""

    def __init__(self, classes: int, shape: tuple[int, int, int], noise: int, width: int) -> None:
        super().__init__()
        self.noise, self.shape, self.width = noise, shape, width
        self.small = (-(-shape[1] // 4), -(-shape[2] // 4))
        self.label = nn.Embedding(classes, noise)
        self.start = nn.Linear(2 * noise, 2 * width * self.small[0] * self.small[1])
        self.middle = nn.Conv2d(2 * width, width, 3, padding=1)
        self.end = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, noise: Tensor, classes: Tensor) -> Tensor:
        """``noise``: (n, noise); ``classes``: (n,) int64."""
        start = F.relu(self.start(torch.cat([noise, self.label(classes)], dim=1)))
        maps = start.view(-1, 2 * self.width, *self.small)
        maps = F.relu(self.middle(F.interpolate(maps, scale_factor=2.0)))
        maps = torch.tanh(self.end(F.interpolate(maps, scale_factor=2.0)))
        return maps[:, :, : self.shape[1], : self.shape[2]]


class Critic(nn.Module):
    """Images to a score, 1 for clean and 0 for triggered: (n, C, H, W) to (n,)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images).squeeze(1)
        return scores
