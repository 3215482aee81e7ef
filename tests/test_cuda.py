"""The CUDA policies as pure functions, on any machine; the device's own part where there is one."""

from __future__ import annotations

import pytest
import rank_cases
import torch
from hypothesis import given
from hypothesis import strategies as st

from ibau_defense import Network, UniversalLoss
from ibau_defense.cuda import (
    Precision,
    bytes_per_image,
    computing,
    free_bytes,
    micro_batch,
    micro_batch_of,
    precision,
    precision_of,
    switches,
)


def test_precision_is_what_the_device_computes_natively() -> None:
    assert precision_of((9, 0), reduced=True) == (torch.bfloat16, True)
    assert precision_of((8, 0), reduced=True) == (torch.bfloat16, True)
    assert precision_of((7, 5), reduced=True) == (None, False)
    assert precision_of(None, reduced=True) == (torch.bfloat16, False)
    for capability in ((9, 0), (7, 5), None):
        assert precision_of(capability, reduced=False) == (None, False)
    assert precision(torch.device("cpu"), reduced=True) == precision_of(None, reduced=True)


def _float32_switches() -> tuple[object, ...]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_the_switches_are_set_inside_and_put_back() -> None:
    before = _float32_switches()
    for tf32 in (True, False):
        with switches(tf32=tf32):
            assert torch.backends.cuda.matmul.allow_tf32 is False
            assert torch.backends.cudnn.conv.fp32_precision == ("tf32" if tf32 else "ieee")
        assert _float32_switches() == before
    with pytest.raises(KeyError), switches(tf32=True):
        raise KeyError
    assert _float32_switches() == before


def test_the_cpu_is_left_alone() -> None:
    before = _float32_switches()
    with computing(Precision(None, tf32=False), torch.device("cpu")):
        assert _float32_switches() == before
    network, (images, labels) = Network(rank_cases.tiny(torch.float32)), rank_cases.clean_set(2, torch.float32)
    assert micro_batch(UniversalLoss(network, images, labels), 10**9) is None


@given(free=st.integers(0, 10**12), per_image=st.integers(1, 10**9), count=st.integers(1, 10**5))
def test_micro_batches_fit_and_are_even(free: int, per_image: int, count: int) -> None:
    size = micro_batch_of(free, per_image, count, share=0.5)
    if size is None:
        assert count * per_image <= max(0.5 * free, per_image)
        return
    assert 1 <= size < count
    assert size == 1 or size * per_image <= 0.5 * free
    parts, most = -(-count // size), max(1, int(0.5 * free // per_image))
    assert parts == -(-count // most)  # no more parts than memory asks for
    assert parts * size - count < parts  # and none of them much smaller than the others


def test_the_bytes_of_one_more_image_are_counted() -> None:
    """What a pass of the tiny network saves for backward grows by the same for every image."""
    network, (images, labels) = Network(rank_cases.tiny(torch.float32)), rank_cases.clean_set(8, torch.float32)
    two, more = (bytes_per_image(UniversalLoss(network, images[:n], labels[:n])) for n in (2, 8))
    assert two == more
    activations = 4 * (3 * 64 + 4 * 64 * 2)  # input, and what BatchNorm and ELU keep at the least, float32
    assert two > activations


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_says_what_is_free() -> None:
    device = torch.device("cuda")
    held = torch.empty(2**20, device=device)
    total = torch.cuda.mem_get_info(device)[1]
    assert held.numel() < free_bytes(device) <= total
    assert precision(device, reduced=True) == precision_of(torch.cuda.get_device_capability(device), reduced=True)
