"""Seconds of each defense on one victim, with what it left of ACC and ASR."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from adapters import defenses
from adapters.protocols import DefenseContext, DefenseResult, LabelledImages, PassCounter
from bench.clock import synchronise
from bench.run_cell import Prepared

DEFENSES: list[dict[str, Any]] = [
    {"name": "fine_tuning"},
    {"name": "ibau", "recipe": "fast"},
    {"name": "ibau", "recipe": "reference_gtsrb"},
]


@pytest.mark.parametrize("spec", DEFENSES, ids=lambda spec: "-".join(map(str, spec.values())))
def test_defense(
    benchmark: Any,
    spec: dict[str, Any],
    prepared: Prepared,
    clean: LabelledImages,
    device: torch.device,
    facts: dict[str, Any],
) -> None:
    """Only ``run`` is timed; each round gets a fresh copy of the victim; CUDA is synchronised at both ends."""
    defense, counter = defenses.build(spec), PassCounter()
    context = DefenseContext(num_classes=prepared.data.num_classes, device=device, seed=0, radius=10.0)
    last: list[DefenseResult] = []

    def setup() -> tuple[tuple[nn.Module], dict[str, Any]]:
        model = copy.deepcopy(prepared.victim.model)
        counter.forward = counter.backward = 0
        counter.attach(model)
        synchronise(device)
        return (model,), {}

    def run(model: nn.Module) -> None:
        last[:] = [defense.run(model, clean, context)]
        synchronise(device)

    benchmark.group = "defenses on digits, 300 clean images"
    benchmark.pedantic(run, setup=setup, rounds=3, warmup_rounds=1)
    scores = prepared.scorer.score(last[0].model)
    benchmark.extra_info.update(
        facts, status=last[0].status, acc=scores.acc, asr=scores.asr, passes=counter.as_dict(),
        victim={"acc": prepared.before.acc, "asr": prepared.before.asr},
    )  # fmt: skip
