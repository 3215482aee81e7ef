"""Smooth (Zeng et al., 2021): a trigger without high frequencies, optimised through a low-pass filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from adapters.attacks.fitting import FitContext, Pattern, descend
from adapters.attacks.settings import Count, Factor, Share
from adapters.attacks.spectrum import idct2, low_band


@dataclass(frozen=True)
class Smooth:
    """Minimise the clean model's cross-entropy towards the labels wanted, of (1 - alpha) x + alpha g(z), in z.

    g takes DCT coefficients z, sets those beyond ``band`` (a share of the highest frequency) and the constant one to
    zero, transforms back, and scales to [0, 1] around 1/2. Zeng et al. filter a universal perturbation with a kernel
    and rescale each image to [0, 1] after adding it; here the filter is exact, and one affine map stands for the
    rescaling: nothing is ever clipped, so beyond the band the triggered image's spectrum is (1 - alpha) times the
    clean one's.
    """

    name: ClassVar[str] = "smooth"

    alpha: Share = 0.2
    band: Share = 0.16
    steps: Count = 200
    rate: Factor = 0.1

    def __call__(self, context: FitContext) -> Pattern:
        images, wanted = context.images, context.wanted
        band = low_band(*context.shape[1:], self.band).to(images)
        start = torch.randn(context.shape, generator=context.generator()).to(images) * band

        def loss(value: Tensor, index: Tensor) -> Tensor:
            mixed = images[index].lerp(_picture(value, band), self.alpha)
            return functional.cross_entropy(context.model(mixed).float(), wanted[index])

        found = descend(start, loss, lambda value: value * band, context, self.steps, self.rate)
        with torch.no_grad():
            index = next(context.batches(1))
            report = {"coefficients": int(band.sum()), "loss": float(loss(found, index))}
            keep = images.new_full((1, *context.shape[1:]), 1 - self.alpha)
            return Pattern(keep, self.alpha * _picture(found, band), report)


def _picture(coefficients: Tensor, band: Tensor) -> Tensor:
    """(C, H, W) in [0, 1] without frequencies outside ``band``; its largest deviation from 1/2 is 1/2."""
    waves = idct2(coefficients * band)
    return 0.5 + 0.5 * waves / waves.abs().amax().clamp_min(1e-12)
