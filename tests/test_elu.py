"""ELU by exp is ELU: values, derivatives of both orders in either mode, and what it falls back to."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, vmap

from adapters.models import elu
from adapters.models.elu import ELU

OURS, TORCH = ELU(), nn.ELU()


@pytest.fixture(autouse=True, scope="module")
def by_exp() -> Iterator[None]:
    """Whatever torch is here, ``OURS`` is the one by exp."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elu, "SLOW_EXPM1", True)
        yield


def spread(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values on both sides of 0, none of them at the kink of the second derivative."""
    return torch.linspace(-8.1, 5.3, count, dtype=dtype)


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_every_value_is_torchs_to_rounding(values: list[float]) -> None:
    given_ = torch.tensor(values, dtype=torch.float32)
    torch.testing.assert_close(OURS(given_), TORCH(given_), rtol=1e-6, atol=2e-7, equal_nan=True)


def test_the_ends_of_the_line() -> None:
    ends = torch.tensor([-math.inf, -1e30, -0.0, 0.0, 1e30, math.inf])
    assert OURS(ends).tolist() == [-1.0, -1.0, 0.0, 0.0, float(torch.tensor(1e30)), math.inf]
    assert OURS(torch.tensor([math.nan])).isnan().all()


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([torch.bfloat16, torch.float16]))
def test_half_precision_rounds_once(seed: int, dtype: torch.dtype) -> None:
    """Computed in float32 and rounded at the end: where torch's differs, then by one step of the dtype."""
    values = (4 * torch.randn(500, generator=torch.Generator().manual_seed(seed))).to(dtype)
    assert OURS(values).dtype == dtype
    torch.testing.assert_close(OURS(values), TORCH(values), rtol=torch.finfo(dtype).eps, atol=2e-7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_and_layout_stay_and_the_input_too(layout: torch.memory_format) -> None:
    images = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    before = images.clone()
    activated = OURS(images)
    assert activated.shape == images.shape
    assert activated.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)


def test_derivatives_of_both_orders_in_either_mode() -> None:
    values = spread(13).requires_grad_()
    assert gradcheck(OURS, (values,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(OURS, (values,), check_fwd_over_rev=True)


@pytest.mark.parametrize(("outer", "inner"), [(jacfwd, jacrev), (jacrev, jacfwd), (jacrev, jacrev), (jacfwd, jacfwd)])
def test_second_derivatives_by_every_pair_of_modes(outer: object, inner: object) -> None:
    def total(layer: nn.Module, values: Tensor) -> Tensor:
        activated: Tensor = layer(values)
        return (activated**2).sum()

    found, expected = (outer(inner(lambda x, layer=layer: total(layer, x)))(spread(7)) for layer in (OURS, TORCH))  # type: ignore[operator]
    torch.testing.assert_close(found, expected)


def test_gradients_of_each_sample() -> None:
    values = torch.randn(5, 6, dtype=torch.float64)
    found = vmap(grad(lambda one: OURS(one).sum()))(values)
    torch.testing.assert_close(found, torch.where(values > 0, 1.0, values.exp()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_has_the_precision_of_torchs(dtype: torch.dtype) -> None:
    found, expected = (spread(200, torch.float32).to(dtype).requires_grad_() for _ in range(2))
    OURS(found).sum().backward()
    TORCH(expected).sum().backward()
    assert found.grad is not None
    assert found.grad.dtype == dtype
    torch.testing.assert_close(found.grad, expected.grad, rtol=torch.finfo(dtype).eps, atol=2e-7)


def test_other_settings_are_left_to_torch() -> None:
    values = torch.randn(20)
    assert torch.equal(ELU(alpha=0.5)(values), nn.ELU(alpha=0.5)(values))
    written = values.clone()
    assert ELU(inplace=True)(written) is written


@pytest.mark.parametrize(
    ("version", "capability", "slow"),
    [
        ("2.14.1+cu130", "AVX512", True),
        ("2.14.0", "AVX512", True),
        ("2.14.1+cu130", "AVX2", False),
        ("2.13.0+cpu", "AVX512", False),
        ("2.15.0+cu132", "AVX512", False),
    ],
)
def test_only_the_torch_that_is_slow_is_replaced(version: str, capability: str, slow: bool) -> None:
    assert elu._slow(version, capability) is slow


def test_elsewhere_it_is_torchs_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    values = spread(50, torch.float32)
    assert not torch.equal(OURS(values), TORCH(values))
    monkeypatch.setattr(elu, "SLOW_EXPM1", False)
    assert torch.equal(OURS(values), TORCH(values))
