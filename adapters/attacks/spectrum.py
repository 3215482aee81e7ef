"""The discrete cosine transform of images: what a trigger leaves in the frequency domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix: (size, size) float64, one frequency a row, the constant one first."""
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    rows = torch.cos(math.pi * torch.arange(size, dtype=torch.float64).unsqueeze(1) * place)
    rows[0] *= math.sqrt(0.5)
    return rows.mul_(math.sqrt(2 / size))


def dct2(images: Tensor) -> Tensor:
    """Orthonormal two-dimensional DCT-II of (..., H, W) float, of the same shape and dtype."""
    down, across = (cosines(side).to(images) for side in images.shape[-2:])
    return down @ images @ across.T


def idct2(spectra: Tensor) -> Tensor:
    """The inverse of ``dct2``."""
    down, across = (cosines(side).to(spectra) for side in spectra.shape[-2:])
    return down.T @ spectra @ across


def low_band(height: int, width: int, share: float) -> Tensor:
    """(H, W) bool: which DCT coefficients a low-pass filter lets through, the constant one left out.

    A coefficient (u, v) passes if sqrt((u/H)^2 + (v/W)^2) <= ``share``, in shares of the highest frequency; the
    lowest of each direction always do, so that the smallest image has a band.
    """
    down = torch.arange(height, dtype=torch.float64).unsqueeze(1) / height
    across = torch.arange(width, dtype=torch.float64).unsqueeze(0) / width
    band = (down.square() + across.square()).sqrt() <= share
    band[: min(2, height), : min(2, width)] = True
    band[0, 0] = False
    return band


def log_spectrum(images: Tensor) -> Tensor:
    """(H, W): log10 of the mean magnitude of the DCT coefficients over images and channels of (N, C, H, W)."""
    return dct2(images).abs().mean(dim=(0, 1)).clamp_min(1e-8).log10()
