"""Seconds of the engine's parts on a mini-batch, each beside its floor: passes counted × the time of one pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.protocols import PassCounter
from bench.cells import Cell
from bench.defense_run import clean_set
from bench.memory import PeakMemory
from bench.records import Passes
from bench.run_cell import CellRunner
from bench.timing.floors import Ceilings, pass_times
from bench.timing.parts import PARTS, Precision, Work, network
from bench.timing.scale import Scale
from ibau_defense import UniversalLoss
from ibau_defense.cuda import synchronise

BATCH = 100
CASES: list[tuple[str, Precision]] = [
    *((name, "float32") for name in PARTS),
    *((name, "bfloat16") for name, part in PARTS.items() if part.reduced),
]


@pytest.mark.parametrize(("part", "precision"), CASES, ids=lambda one: str(one))
def test_part(
    benchmark: Any, base: Cell, part: str, precision: Precision, runner: CellRunner, device: torch.device,
    scale: Scale, facts: dict[str, Any], ceilings: Ceilings,
) -> None:  # fmt: skip
    prepared = runner.prepare(base)
    clean = clean_set(base, prepared, device)
    images, labels = clean.images[:BATCH], clean.labels[:BATCH]
    delta = _delta(images)

    def build(module: nn.Module) -> Work:
        loss = UniversalLoss(network(module, precision, twice=PARTS[part].twice), images, labels, clip=True)
        return PARTS[part].build(loss, delta)

    def setup() -> tuple[tuple[Work], dict[str, Any]]:
        work = build(copy.deepcopy(prepared.victim.model))
        synchronise(device)
        return (work,), {}

    def run(work: Work) -> None:
        work()
        synchronise(device)

    benchmark.group = f"{base.dataset}: engine, {len(images)} images, {precision}"
    benchmark.pedantic(run, setup=setup, rounds=scale.rounds, warmup_rounds=2)
    passes, peak = _counted(build, prepared.victim.model, device)
    one = pass_times(network(prepared.victim.model, precision), images)
    to_theta = PARTS[part].to_theta * len(images)
    floor = one.floor(passes, to_theta=to_theta)
    benchmark.extra_info.update(
        facts, kind="part", part=part, precision=precision, images=len(images), passes=passes.model_dump(),
        backward_to_theta=to_theta, pass_seconds=one._asdict(), floor_seconds=floor, peak_memory_bytes=peak,
        ceilings=ceilings._asdict(), acc=prepared.before.acc, asr=prepared.before.asr,
    )  # fmt: skip


def _counted(build: Any, module: nn.Module, device: torch.device) -> tuple[Passes, int]:
    """The images one call sends forward and backward, and its peak of memory in bytes."""
    counter, watched = PassCounter(), copy.deepcopy(module)
    counter.attach(watched)
    work = build(watched)
    counter.forward = counter.backward = 0
    memory = PeakMemory(device)
    work()
    memory.pause()
    return Passes(**counter.as_dict()), memory.bytes


def _delta(images: Tensor) -> Tensor:
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0))
    return 0.05 * noise.to(images.device)
