"""Seconds of what surrounds a defense: training, triggers, poisoning, scoring, and what a cell costs besides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adapters import attacks
from adapters.models.elu import elu_by_exp
from adapters.models.simplified_vgg import WIDTHS
from bench.cells import Cell
from bench.defense_run import clean_set
from bench.preflight import multiplications
from bench.records import RecordStore
from bench.run_cell import CellRunner, run_cell
from bench.timing.floors import Ceilings
from bench.timing.parts import Precision
from bench.timing.scale import Scale
from bench.training import autocast_dtype, train
from bench.victims import new_model, poisoned_training_set
from ibau_defense import IBAU, L2Ball
from ibau_defense.cuda import synchronise

PER_TRAINED_IMAGE = 3 * 2
"""Operations a multiplication of the forward pass stands for: it and an addition, forward and twice backward."""
TRIGGERS = ("badnets", "blend", "wanet")
"""Kinds: a patch, a mixture, a warp. Those that are fitted to a model are applied like the first two."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"ELU by exp": elu_by_exp, "ELU of torch": functional.elu}
"""The simplified VGG has the first where torch's is slow (``adapters.models.elu``)."""


@pytest.mark.parametrize("recorded", [True, False], ids=["as in a sweep", "plain"])
def test_training(
    benchmark: Any, base: Cell, recorded: bool, runner: CellRunner, device: torch.device, facts: dict[str, Any],
    ceilings: Ceilings,
) -> None:  # fmt: skip
    """One epoch of the victim, from its first weights; ACC and ASR of the model that the last repetition trained.

    On a CUDA device also with every step launched kernel by kernel, instead of recorded and replayed.
    """
    if not recorded and device.type != "cuda":
        pytest.skip("on the CPU no step is recorded")
    prepared = runner.prepare(base)
    poisoned = poisoned_training_set(base, prepared.data, prepared.scorer.attacks)
    assert base.training is not None
    training = base.training.model_copy(update={"epochs": 1})

    last: list[nn.Module] = []

    def setup() -> tuple[tuple[nn.Module], dict[str, Any]]:
        last[:] = [new_model(base, prepared.data).to(device)]
        return (last[0],), {}

    def run(model: nn.Module) -> None:  # synchronises at both ends
        train(model, poisoned.images, poisoned.labels, training, device, seed=0, rows=poisoned.rows, recorded=recorded)

    benchmark.group = f"{base.dataset}: harness"
    benchmark.pedantic(run, setup=setup, rounds=3, warmup_rounds=1)
    count = len(poisoned.labels)
    precision = str(autocast_dtype(device)).removeprefix("torch.")
    after = prepared.scorer.score(last[0])
    needed = PER_TRAINED_IMAGE * multiplications(base.model, prepared.data) * count
    benchmark.extra_info.update(
        facts, kind="harness", what="victim training, one epoch" + ("" if recorded else ", kernel by kernel"),
        images=count, precision=precision,
        ceilings=ceilings._asdict(), floor_seconds=needed / ceilings.multiplied[precision],
        acc=after.acc, asr=after.asr,
    )  # fmt: skip


@pytest.mark.parametrize("recorded", [True, False], ids=["as in a sweep", "plain"])
@pytest.mark.parametrize("recipe", ["fast", "reference"])
def test_unlearning(
    benchmark: Any, base: Cell, recipe: str, recorded: bool, runner: CellRunner, device: torch.device,
    facts: dict[str, Any],
) -> None:  # fmt: skip
    """What recorded passes save I-BAU on a CUDA device: all rounds of the default recipe, one of the authors'."""
    if device.type != "cuda":
        pytest.skip("on the CPU no pass is recorded")
    prepared = runner.prepare(base)
    clean = clean_set(base, prepared, device)
    rounds = 1 if recipe == "reference" else None
    ibau = IBAU(L2Ball(10.0), recipe, rounds, cuda_graphs=recorded)
    last: list[nn.Module] = []

    def run() -> None:
        last[:] = [ibau.unlearn(prepared.victim.model, clean.images, clean.labels).model]
        synchronise(device)

    benchmark.group = f"{base.dataset}: harness"
    benchmark.pedantic(run, rounds=2, warmup_rounds=1)
    after = prepared.scorer.score(last[0])
    shown = "one round" if rounds else f"{ibau.settings().rounds} rounds"
    what = f"I-BAU, recipe {recipe}, {shown}" + ("" if recorded else ", kernel by kernel")
    benchmark.extra_info.update(facts, kind="harness", what=what, images=None, acc=after.acc, asr=after.asr)


@pytest.mark.parametrize("name", TRIGGERS)
def test_trigger(
    benchmark: Any, base: Cell, name: str, runner: CellRunner, device: torch.device, scale: Scale, facts: dict[str, Any]
) -> None:
    data = runner.prepare(base).data
    images = data.test.images[:1000].to(device).float().div_(255)
    trigger = attacks.build(name, data.image_shape, 0)

    def run() -> None:
        trigger(images)
        synchronise(device)

    benchmark.group = f"{base.dataset}: harness"
    benchmark.pedantic(run, rounds=scale.rounds, warmup_rounds=2)
    benchmark.extra_info.update(facts, kind="harness", what=f"trigger {name}", images=len(images))


def test_poisoning(benchmark: Any, base: Cell, runner: CellRunner, scale: Scale, facts: dict[str, Any]) -> None:
    """The whole training set through the poisoning toolkit; on the CPU whatever the device."""
    prepared = runner.prepare(base)

    def run() -> None:
        poisoned_training_set(base, prepared.data, prepared.scorer.attacks)

    benchmark.group = f"{base.dataset}: harness"
    benchmark.pedantic(run, rounds=scale.rounds, warmup_rounds=1)
    count = round((base.poison_ratio or 0.0) * len(prepared.data.train.labels))
    benchmark.extra_info.update(facts, kind="harness", what="poisoning", images=count)


def test_scoring(benchmark: Any, base: Cell, runner: CellRunner, device: torch.device, facts: dict[str, Any]) -> None:
    """ACC, ASR and RA on every scoring image: clean, and triggered."""
    prepared = runner.prepare(base)

    def run() -> None:
        prepared.scorer.score(prepared.victim.model)
        synchronise(device)

    benchmark.group = f"{base.dataset}: harness"
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    shown = prepared.before.clean_count + round(prepared.before.triggered_count)
    benchmark.extra_info.update(
        facts, kind="harness", what="scoring", images=shown, acc=prepared.before.acc, asr=prepared.before.asr
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(
    benchmark: Any, base: Cell, name: str, precision: Precision, device: torch.device, scale: Scale,
    facts: dict[str, Any],
) -> None:  # fmt: skip
    """Forward and backward on a tensor as the simplified VGG's first layer makes of 64 images of 32 × 32."""
    activate = ACTIVATIONS[name]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, WIDTHS[0], 32, 32, generator=generator).to(device, getattr(torch, precision))
    values.requires_grad_(True)
    gradient = torch.ones_like(values)

    def run() -> None:
        torch.autograd.grad(activate(values), values, gradient)
        synchronise(device)

    benchmark.group = f"{base.dataset}: harness"
    benchmark.pedantic(run, rounds=scale.rounds, warmup_rounds=10)
    what = f"{name}, forward and backward, {precision}"
    benchmark.extra_info.update(facts, kind="harness", what=what, images=len(values))


def test_cell_overhead(
    benchmark: Any, base: Cell, runner: CellRunner, device: torch.device, scale: Scale, facts: dict[str, Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    """A cell whose defense does nothing, from the cell to its record on disk: what comes on top of a defense.

    What a defense changed is scored besides (``test_scoring``).
    """
    cell = base.model_copy(update={"defense": {"name": "none"}, "radius": None})
    prepared, store = runner.prepare(cell), RecordStore(tmp_path)

    def run() -> None:
        store.append(run_cell(cell, prepared, device))

    benchmark.group = f"{base.dataset}: harness"
    benchmark.pedantic(run, rounds=scale.rounds, warmup_rounds=1)
    benchmark.extra_info.update(facts, kind="harness", what="overhead of a cell", images=None)
