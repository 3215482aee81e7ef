"""Seconds of the engine's parts on a batch of 100: gradients, a curvature product of each kind, the mixed product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.protocols import LabelledImages
from bench.clock import synchronise
from bench.run_cell import Prepared
from ibau_defense import Network, UniversalLoss, linearise, value_and_gradients

BATCH = 100
Part = Callable[[UniversalLoss, Tensor], Callable[[], object]]


def _product(curvature: Any, *, mixed: bool = False) -> Part:
    def build(loss: UniversalLoss, delta: Tensor) -> Callable[[], object]:
        kind: Any = "directional" if curvature == "directional" else "exact"
        point = linearise(loss, delta, loss.network.theta, curvature=curvature, mixed=kind)
        v = torch.ones_like(delta)
        return lambda: point.mixed(v) if mixed else point.curvature(v)

    return build


PARTS: dict[str, Part] = {
    "gradient of delta (an ascent step)": lambda f, d: lambda: value_and_gradients(f, d, f.network.theta),
    "gradients of delta and theta": lambda f, d: lambda: value_and_gradients(f, d, f.network.theta, wrt_theta=True),
    "curvature product, exact": _product("exact"),
    "curvature product, directional": _product("directional"),
    "mixed product, exact": _product("exact", mixed=True),
    "mixed product, directional": _product("directional", mixed=True),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", list(PARTS))
def test_part(
    benchmark: Any,
    part: str,
    precision: str,
    prepared: Prepared,
    clean: LabelledImages,
    device: torch.device,
    facts: dict[str, Any],
) -> None:
    fast = precision == "bfloat16"
    network = Network(
        prepared.victim.model, autocast=torch.bfloat16 if fast else None, channels_last=fast, twice=not fast
    )
    loss = UniversalLoss(network, clean.images[:BATCH], clean.labels[:BATCH], clip=True)
    generator = torch.Generator().manual_seed(0)
    delta = 0.05 * torch.randn(clean.images.shape[1:], generator=generator).to(device)
    work = PARTS[part](loss, delta)

    def run() -> None:
        work()
        synchronise(device)

    benchmark.group = f"engine, batch of {BATCH}, {precision}"
    benchmark.pedantic(run, rounds=7, warmup_rounds=2)
    benchmark.extra_info.update(facts)
