"""The cheap dropout: the share dropped, the scale, the expectation, and torch's generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapters.models.dropout import Dropout


def dropped(p: float, images: Tensor) -> Tensor:
    torch.manual_seed(0)
    return Dropout(p)(images)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_drops_the_share_and_scales_the_rest(p: float) -> None:
    out = dropped(p, torch.ones(64, 8, 16, 16))
    share = float((out == 0).float().mean())
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / out.numel()) ** 0.5)
    assert out[out != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_shape_dtype_and_layout(layout: torch.memory_format, dtype: torch.dtype) -> None:
    images = torch.rand(3, 5, 7, 9).to(dtype=dtype, memory_format=layout)
    out = dropped(0.3, images)
    assert (out.shape, out.dtype, out.stride()) == (images.shape, dtype, images.stride())


def test_an_odd_number_of_elements_and_other_shapes() -> None:
    assert dropped(0.5, torch.ones(7)).shape == (7,)
    assert dropped(0.5, torch.ones(1, 3, 1)).shape == (1, 3, 1)


def test_same_seed_same_mask_and_evaluation_changes_nothing() -> None:
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(dropped(0.3, images), dropped(0.3, images), rtol=0, atol=0)
    assert Dropout(0.3).eval()(images) is images
    assert not dropped(1.0, images).any()


def test_the_gradient_is_the_mask() -> None:
    images = torch.ones(8, 3, 8, 8, requires_grad=True)
    out = dropped(0.4, images)
    (gradient,) = torch.autograd.grad(out.sum(), images)
    torch.testing.assert_close(gradient, out.detach(), rtol=0, atol=0)


def test_neighbours_are_independent() -> None:
    """Four elements share a 64-bit draw: their masks must not."""
    kept = (dropped(0.5, torch.ones(1 << 16)) != 0).float().view(-1, 4)
    assert (torch.corrcoef(kept.T) - torch.eye(4)).abs().max() < 0.04
