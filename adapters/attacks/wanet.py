"""WaNet (Nguyen & Tran, 2021): a smooth, faint warp of the image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

POINTS, STRENGTH = 4, 0.5
"""Control points along each side (k) and strength (s), those of Nguyen & Tran."""

_FIELD_SEED = 2021


@dataclass(eq=False)
class WaNet:
    """Bilinear resampling of the image at grid + s P / side, in coordinates in which the image reaches from -1 to 1.

    P is a random field on k x k points, divided by its mean magnitude and upsampled bicubically, so that a point moves
    by about s / 2 pixels; what lies outside the image is taken from its edge. The field is the same for every seed,
    so that models trained in different runs answer to one trigger. Nguyen & Tran's *noise mode*, in which further
    images are warped at random and keep their labels, is a way of training, not part of the trigger: it is not done
    here, and without it the attack is easier to reverse-engineer.
    """

    grid: Tensor = field(repr=False)
    name: str = "wanet"

    @classmethod
    def for_images(
        cls,
        image_shape: tuple[int, int, int],
        seed: int = 0,
        *,
        points: Annotated[int, Field(ge=2, le=64)] = POINTS,
        strength: Annotated[float, Field(gt=0, le=32)] = STRENGTH,
    ) -> WaNet:
        """The warp for images of ``image_shape`` (C, H, W). ``seed`` plays no part (see the class)."""
        _, height, width = image_shape
        generator = torch.Generator().manual_seed(_FIELD_SEED)
        control = torch.rand(1, 2, points, points, generator=generator, dtype=torch.float64) * 2 - 1
        control = control / control.abs().mean()
        warp = functional.interpolate(control, size=(height, width), mode="bicubic", align_corners=True)[0]
        down, across = torch.meshgrid(_line(height), _line(width), indexing="ij")
        moved = torch.stack([across + strength * warp[0] / width, down + strength * warp[1] / height], dim=-1)
        return cls(grid=moved.clamp(-1, 1).to(torch.float32))

    def __call__(self, images: Tensor) -> Tensor:
        """``images``: (N, C, H, W) float in [0, 1]; returns the warped images."""
        if len(images) == 0:
            return images.clone()
        grid = self.grid.to(images).expand(len(images), -1, -1, -1)
        warped = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
        return warped.clamp(0.0, 1.0)


def _line(side: int) -> Tensor:
    """The centres of ``side`` pixels, float64 in [-1, 1]; 0 for a single one."""
    return torch.linspace(-1, 1, side, dtype=torch.float64) if side > 1 else torch.zeros(1, dtype=torch.float64)
