"""How visible a trigger is, against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from adapters.attacks import build, visibility
from adapters.attacks.visibility import ssim

light = settings(max_examples=20)


def scipys_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """One channel (H, W), with scipy's Gaussian filter, cut at 3.5 sigma, edges mirrored."""

    def blur(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, sigma=1.5, truncate=3.5, mode="reflect")

    mx, my = blur(first), blur(second)
    vx, vy, cov = blur(first**2) - mx**2, blur(second**2) - my**2, blur(first * second) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


@light
@given(height=st.integers(1, 24), width=st.integers(1, 24), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_ssim_is_that_of_scipy(height: int, width: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.random((2, channels, height, width))
    second = np.clip(first + rng.normal(0, 0.2, first.shape), 0, 1)
    expected = [
        np.mean([scipys_ssim(a, b) for a, b in zip(one, other, strict=True)])
        for one, other in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(ssim(torch.from_numpy(first), torch.from_numpy(second)).numpy(), expected, atol=1e-10)


@light
@given(seed=st.integers(0, 99), count=st.integers(1, 4))
def test_norms_and_psnr_are_their_formulas(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    clean, triggered = rng.random((2, count, 3, 6, 5))
    triggered[:, :, 2:] = clean[:, :, 2:]
    found = visibility(torch.from_numpy(clean), torch.from_numpy(triggered))
    change = triggered - clean
    assert found.l0 == np.mean([(np.abs(one).max(axis=0) > 0.5 / 255).sum() for one in change])
    assert found.l2 == pytest.approx(np.mean([np.linalg.norm(one) for one in change]))
    assert found.linf == pytest.approx(np.mean([np.abs(one).max() for one in change]))
    assert found.psnr == pytest.approx(10 * np.log10(1 / np.mean(change**2)))


def test_no_change_is_no_change() -> None:
    images = torch.rand(2, 3, 8, 8)
    found = visibility(images, images)
    assert (found.l0, found.l2, found.linf, found.psnr) == (0, 0, 0, None)
    assert found.ssim == pytest.approx(1)
    with pytest.raises(ValueError, match="expected two equal, non-empty shapes"):
        visibility(images[:0], images[:0])
    with pytest.raises(ValueError, match="expected two equal, non-empty shapes"):
        visibility(images, images[:1])


@pytest.mark.parametrize(("levels", "pixels"), [(0.4, 0), (1, 1)])
def test_a_level_in_one_channel_is_a_changed_pixel(levels: float, pixels: int) -> None:
    clean = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    triggered = clean.clone()
    triggered[0, 1, 2, 3] += levels / 255
    assert visibility(clean, triggered).l0 == pixels


def test_badnets_on_black_images() -> None:
    black = torch.zeros(2, 3, 32, 32)
    found = visibility(black, build("badnets", (3, 32, 32), 0)(black))
    assert (found.l0, found.linf) == (16, 1)
    assert found.l2 == pytest.approx(np.sqrt(48))
    assert found.psnr == pytest.approx(10 * np.log10(3072 / 48))
