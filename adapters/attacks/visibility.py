"""How visible a trigger is: norms of what it changes, PSNR and SSIM."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_WINDOW_SIGMA, _WINDOW_RADIUS = 1.5, 5
_C1, _C2 = 0.01**2, 0.03**2
_HALF_LEVEL = 0.5 / 255


class Visibility(NamedTuple):
    """Means over images. Pixel values are in [0, 1].

    ``l0``: pixels (of H x W) of which some channel changes by more than half of one of the 256 levels. ``l2``,
    ``linf``: norms of triggered - clean over all C x H x W values. ``psnr``: in dB, of the mean squared error over all
    images; None where nothing changes. ``ssim``: Wang et al. (2004), in [-1, 1].
    """

    l0: float
    l2: float
    linf: float
    psnr: float | None
    ssim: float


def visibility(clean: Tensor, triggered: Tensor) -> Visibility:
    """The figures of images before and after: (N, C, H, W) float in [0, 1] both, N at least 1."""
    if clean.shape != triggered.shape or len(clean) == 0:
        raise ValueError(f"expected two equal, non-empty shapes, found {tuple(clean.shape)}, {tuple(triggered.shape)}")
    residual = (triggered - clean).to(torch.float64)
    error = float(residual.square().mean())
    return Visibility(
        l0=float((residual.abs().amax(dim=1) > _HALF_LEVEL).sum(dim=(1, 2)).to(torch.float64).mean()),
        l2=float(residual.flatten(1).norm(dim=1).mean()),
        linf=float(residual.abs().flatten(1).amax(dim=1).mean()),
        psnr=None if error == 0 else float(-10 * torch.tensor(error, dtype=torch.float64).log10()),
        ssim=float(ssim(clean, triggered).mean()),
    )


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of (N, C, H, W) images in [0, 1]: (N,) float64, the mean over positions and channels.

    Wang et al. (2004), equation (13): a Gaussian window of sigma 1.5 and 11 pixels, K1 = 0.01, K2 = 0.03. Images are
    mirrored at their edges, so that ones smaller than the window have a figure too.
    """
    x, y = first.to(torch.float64), second.to(torch.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _blur(images: Tensor) -> Tensor:
    down, across = (_blur_matrix(side).to(images.device) for side in images.shape[-2:])
    return down @ images @ across.T


def _blur_matrix(size: int) -> Tensor:
    """(size, size) float64: the Gaussian window as a matrix, what lies beyond an edge mirrored about it."""
    offsets = torch.arange(-_WINDOW_RADIUS, _WINDOW_RADIUS + 1)
    weights = torch.exp(-0.5 * (offsets.to(torch.float64) / _WINDOW_SIGMA).square())
    weights /= weights.sum()
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        place = (row + offsets) % (2 * size)
        place = torch.where(place < size, place, 2 * size - 1 - place)
        matrix[row].index_add_(0, place, weights)
    return matrix
