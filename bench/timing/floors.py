"""What a part of the engine cannot be faster than: its passes through the network, and the device's own ceilings."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bench.records import Passes
from ibau_defense import Network
from ibau_defense.cuda import now
from ibau_defense.objective import Theta

REPETITIONS, WARM_UP = 7, 2


class PassTimes(NamedTuple):
    """Seconds that one image takes forward; backward to the images; and backward to images and parameters."""

    forward: float
    backward: float
    backward_to_all: float

    def floor(self, passes: Passes, *, to_theta: int) -> float:
        """Seconds that ``passes`` take at least, ``to_theta`` of the backward ones reaching the parameters.

        A pass through a gradient's own graph is counted like any other.
        """
        backward = to_theta * self.backward_to_all + (passes.backward - to_theta) * self.backward
        return passes.forward * self.forward + backward


class Ceilings(NamedTuple):
    """What the device can do: bytes it copies a second (read and written both count), and multiplications and
    additions a second in a product of square matrices, by precision."""

    copied: float
    multiplied: dict[str, float]


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of several runs after a warm-up; the device is synchronised at both ends of each."""
    taken = []
    for _ in range(WARM_UP + REPETITIONS):
        start = now(device)
        work()
        taken.append(now(device) - start)
    return statistics.median(taken[WARM_UP:])


def pass_times(network: Network, images: Tensor) -> PassTimes:
    """Of ``network`` on a batch of ``images`` (n, C, H, W), in its own precision, its loss left out."""
    device = images.device
    point, theta = images.detach().requires_grad_(True), tuple(one.requires_grad_(True) for one in network.theta)
    fixed = network.theta

    def forward() -> None:
        with torch.no_grad():
            network(images, fixed)

    alone = median_seconds(forward, device)
    there = median_seconds(lambda: _gradients(network, point, fixed, (point,)), device)
    everything = median_seconds(lambda: _gradients(network, point, theta, (point, *theta)), device)
    seconds = alone, max(0.0, there - alone), max(0.0, everything - alone)
    return PassTimes(*(one / len(images) for one in seconds))


def ceilings(device: torch.device) -> Ceilings:
    """Measured on blocks that no cache holds, of random numbers: a device may be quicker on constant ones. A second or
    two."""
    cuda = device.type == "cuda"
    block = torch.rand((256 if cuda else 16) << 20, device=device)
    target = torch.empty_like(block)
    copied = 2 * block.numel() * block.element_size() / median_seconds(lambda: target.copy_(block), device)
    size = 8192 if cuda else 1024
    return Ceilings(copied, {str(kind).removeprefix("torch."): _multiplied(size, kind, device) for kind in _KINDS})


_KINDS = (torch.float32, torch.bfloat16)


def _multiplied(size: int, kind: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return 2.0 * size**3 / median_seconds(lambda: a @ b, device)


def _gradients(network: Network, point: Tensor, theta: Theta, wanted: tuple[Tensor, ...]) -> object:
    with torch.enable_grad():
        return torch.autograd.grad(network(point, theta).sum(), wanted)
