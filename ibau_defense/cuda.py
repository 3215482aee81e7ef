"""What a CUDA device changes: precision, micro-batches and recorded passes. On the CPU nothing of it happens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ibau_defense.graphs import CudaRecorder, Graphs, Tally
from ibau_defense.objective import UniversalLoss, value_and_gradients
from ibau_defense.saved import most_saved

WORKING = 4.0
"""Bytes of a pass for each byte it saves for backward: a graph that is differentiated twice, gradients, workspaces."""


class Precision(NamedTuple):
    """How network passes compute; vectors, sums and updates are float32 (or the parameters' dtype) either way.

    Attributes:
        autocast: of the layers autocast knows; None for the parameters' own dtype.
        tf32: whether float32 convolutions may round their factors to TF32. Float32 matrix products never do: they
            also occur outside the network.
    """

    autocast: torch.dtype | None
    tf32: bool


def synchronise(device: torch.device) -> None:
    """Wait for all work on ``device``; a no-op on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds of ``time.perf_counter`` once ``device`` has done everything asked of it."""
    synchronise(device)
    return time.perf_counter()


def precision(device: torch.device, *, reduced: bool) -> Precision:
    """The policy for ``device``: a recipe that asks for reduced precision gets what the device computes natively."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return precision_of(capability, reduced=reduced)


def precision_of(capability: tuple[int, int] | None, *, reduced: bool) -> Precision:
    """As ``precision``, of a CUDA compute capability; None for the CPU.

    bfloat16 and TF32 exist from 8.0 on; before, bfloat16 is emulated and slower than float32.
    """
    if not reduced:
        return Precision(None, tf32=False)
    if capability is None:
        return Precision(torch.bfloat16, tf32=False)
    native = capability >= (8, 0)
    return Precision(torch.bfloat16 if native else None, tf32=native)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor``, of the host, on ``device``, without waiting for what the device has still to do, as ``to`` does."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def computing(policy: Precision, device: torch.device) -> Iterator[None]:
    """torch's float32 switches as ``policy`` has them, put back afterwards; a no-op on the CPU."""
    if device.type != "cuda":
        yield
        return
    with switches(tf32=policy.tf32):
        yield


@contextmanager
def switches(*, tf32: bool) -> Iterator[None]:
    """Float32 convolutions in TF32 or not, float32 matrix products not; put back afterwards."""
    backends: Any = torch.backends  # whose stubs lack the switches
    convolutions, products = backends.cudnn.conv, backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    try:
        convolutions.fp32_precision, products.fp32_precision = "tf32" if tf32 else "ieee", "ieee"
        yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before


def graphs_for(device: torch.device, policy: Precision, tally: Tally | None = None) -> Graphs | None:
    """Recorded passes on a CUDA device, None elsewhere.

    A replay may differ from a plain pass by the square root of the machine epsilon of the passes' precision, as a
    share of the largest entry: other algorithms may be chosen, the mathematics is the same.
    """
    if device.type != "cuda":
        return None
    coarse = policy.autocast or (torch.float16 if policy.tf32 else torch.float32)  # TF32 has float16's mantissa
    return Graphs(CudaRecorder(device), tolerance=math.sqrt(torch.finfo(coarse).eps), tally=tally)


def micro_batch(loss: UniversalLoss, count: int) -> int | None:
    """How many images one pass may take in the memory that is free now; None for any number, as on the CPU.

    Args:
        loss: of at least two images, such as the passes will be of.
        count: images of the largest batch.
    """
    device = loss.images.device
    if device.type != "cuda":
        return None
    return micro_batch_of(free_bytes(device), bytes_per_image(loss), count)


def micro_batch_of(free: int, per_image: int, count: int, share: float = 0.5) -> int | None:
    """The largest even split of ``count`` images whose parts fit into ``share`` of ``free`` bytes; None for one part.

    Even parts have two shapes at most, so that their passes can be recorded. At least one image.
    """
    most = max(1, int(share * free // max(1, per_image)))
    if count <= most:
        return None
    return math.ceil(count / math.ceil(count / most))


def bytes_per_image(loss: UniversalLoss) -> int:
    """Bytes a pass takes for one more image: those saved for backward, counted on two images and on one."""
    delta, theta = torch.zeros_like(loss.images[0]), loss.network.theta

    def saved(count: int) -> int:
        few = replace(loss, images=loss.images[:count], labels=loss.labels[:count], carriers=None, assignment=None)
        return most_saved(lambda: value_and_gradients(few, delta, theta, wrt_theta=True))

    return max(1, int(WORKING * (saved(2) - saved(1))))


def free_bytes(device: torch.device) -> int:
    """Free on the device, and what torch's allocator holds without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
