"""A training step that is recorded and replayed: the bookkeeping with a recorder that does the work anew, and CUDA."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adapters.protocols import PassCounter
from adapters.training_step import AFTER, TrainingStep, descent
from ibau_defense.graphs import Recording

CPU = torch.device("cpu")


def network(dropout: float = 0.3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ELU(), nn.Dropout(dropout), nn.Flatten(),
            nn.Linear(4 * 16, 5),
        ).train()  # fmt: skip


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(images), labels)


def batches(sizes: Sequence[int], device: torch.device = CPU) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = [(torch.rand(n, 3, 4, 4, generator=generator), torch.randint(5, (n,), generator=generator)) for n in sizes]
    return [(images.to(device), labels.to(device)) for images, labels in made]


class Captured:
    """A replay as a device sees it: the same work on the same addresses, its gradients written, not added."""

    def __init__(self, model: nn.Module, work: Callable[[], Sequence[Tensor]]) -> None:
        self.model, self.work, state, random = model, work, copy.deepcopy(model.state_dict()), torch.get_rng_state()
        self.results = [one.clone() for one in work()]
        self.gradients = [one.grad for one in model.parameters()]
        model.load_state_dict(state)  # a capture does nothing yet
        torch.set_rng_state(random)

    def replay(self) -> None:
        for one in self.model.parameters():
            one.grad = None
        for kept, found in zip(self.results, self.work(), strict=True):
            kept.copy_(found)
        for one, kept in zip(self.model.parameters(), self.gradients, strict=True):
            assert kept is not None
            assert one.grad is not None
            kept.copy_(one.grad)
            one.grad = kept


class Recorder:
    def __init__(self, model: nn.Module, fail: bool = False) -> None:
        self.model, self.fail, self.recorded = model, fail, 0

    def aside(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Recording, Sequence[Tensor]]:
        made = Captured(self.model, work)
        if self.fail:  # half-way: gradients of nothing are left behind
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1
        return made, made.results


def train(
    model: nn.Module, data: Sequence[tuple[Tensor, Tensor]], step: TrainingStep, lr: float = 0.05
) -> tuple[list[float], list[Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for images, labels in data:
            (found,) = step(images, labels)
            optimizer.step()
            losses.append(float(found))
    return losses, [one.detach().clone() for one in (*model.parameters(), *model.buffers())]


def plainly(data: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[float], list[Tensor]]:
    """The loop as anyone writes it."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for images, labels in data:
            value = loss(model, images, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
    return losses, [one.detach().clone() for one in (*model.parameters(), *model.buffers())]


EPOCHS = [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 3] * 4
SHORT = [8, 8, 3] * (AFTER + 2)
"""Epochs of two full mini-batches: what is recorded follows on one of another size."""
LONG = [8] * (AFTER + 9) + [3] + [8] * 5 + [5] * (AFTER + 4) + [8] * 2


@pytest.mark.parametrize("sizes", [EPOCHS, SHORT, LONG], ids=["epochs", "short", "long"])
@pytest.mark.parametrize("how", ["cpu", "recorded", "refused"])
def test_training_is_the_same_however_a_step_is_done(how: str, sizes: list[int]) -> None:
    model, data, counter = network(), batches(sizes), PassCounter()
    counter.attach(model)
    recorder = None if how == "cpu" else Recorder(model, fail=how == "refused")
    step = TrainingStep(descent(model, loss), model.parameters(), CPU, counter, recorder)
    expected, found = plainly(data), train(model, data, step)
    assert found[0] == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    assert counter.as_dict() == {"forward": sum(sizes), "backward": sum(sizes)}
    # of epochs' full mini-batches all but the first are replayed, of their last ones none; or first one, then another
    replays = 9 + 5 + 4 if sizes is LONG else sizes.count(8) - AFTER
    assert step.replays == (replays if how == "recorded" else 0)
    assert recorder is None or recorder.recorded == (0 if how != "recorded" else 2 if sizes is LONG else 1)


def test_a_recording_that_is_made_again_counts_its_own_images() -> None:
    """One shape is recorded, another comes in a row and cannot be, and the first is recorded anew."""
    model, counter, sizes = network(), PassCounter(), [8] * (AFTER + 5) + [3] * (AFTER + 5) + [8] * (AFTER + 5)
    counter.attach(model)
    recorder = Recorder(model)
    step = TrainingStep(descent(model, loss), model.parameters(), CPU, counter, recorder)
    recorded, data = recorder.record, batches(sizes)

    def sometimes(work: Callable[[], Sequence[Tensor]]) -> tuple[Recording, Sequence[Tensor]]:
        recorder.fail = recorder.recorded == 1 and len(counts) > AFTER + 5 and not failed
        failed.extend([1] if recorder.fail else [])
        return recorded(work)

    counts: list[int] = []
    failed: list[int] = []
    recorder.record = sometimes  # type: ignore[method-assign]
    for batch in data:
        counts.append(len(batch[0]))
        step(*batch)
        assert counter.as_dict() == {"forward": sum(counts), "backward": sum(counts)}
    assert failed
    assert recorder.recorded == 2


def test_a_step_that_cannot_be_recorded_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    step = TrainingStep(descent(model, loss), model.parameters(), CPU, recorder=Recorder(model, fail=True))
    with caplog.at_level(logging.WARNING):
        train(model, batches([8] * (AFTER + 5)), step)
    assert len(caplog.messages) == 1
    assert "run plainly from now on: RuntimeError: operation not permitted" in caplog.messages[0]


def test_results_are_copies_that_later_replays_leave_alone() -> None:
    model, data = network(), batches([8] * (AFTER + 6))
    step = TrainingStep(descent(model, loss), model.parameters(), CPU, recorder=Recorder(model))
    found = [step(*batch)[0] for batch in data]
    assert len({float(one) for one in found}) == len(found)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("sizes", [EPOCHS, SHORT, LONG], ids=["epochs", "short", "long"])
def test_on_cuda_a_recorded_step_trains_as_a_plain_one(sizes: list[int], caplog: pytest.LogCaptureFixture) -> None:
    device, ends = torch.device("cuda"), []
    data = batches(sizes, device)
    for plain in (True, False):
        model = network(dropout=0.0).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        counter = PassCounter()
        counter.attach(model)
        step = TrainingStep(descent(model, loss), model.parameters(), device, counter, recorded=not plain)
        ends.append(train(model, data, step))
        assert counter.as_dict() == {"forward": sum(sizes), "backward": sum(sizes)}
        assert (step.replays > 0) == (not plain)
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-3, abs=1e-5)
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-5)
    assert caplog.messages == []


@pytest.mark.cuda
@needs_cuda
def test_on_cuda_every_replay_draws_its_own_mask_and_counts_its_batch() -> None:
    device = torch.device("cuda")
    model = network(dropout=0.5).to(device)
    step = TrainingStep(descent(model, loss), model.parameters(), device)
    (batch,) = batches([64], device)
    found = [float(step(*batch)[0]) for _ in range(AFTER + 20)]  # no optimiser: the mask alone differs
    assert step.replays == 20
    assert len(set(found[-20:])) > 15
    counted = model[1].num_batches_tracked
    assert isinstance(counted, Tensor)
    assert int(counted) == AFTER + 20


@pytest.mark.cuda
@needs_cuda
def test_on_cuda_a_step_that_reads_on_the_host_goes_on_plainly(caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device("cuda")
    model = network(dropout=0.5).to(device)

    def reading(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        value = loss(model, images, labels)
        return value if float(value) < 1e9 else value * 0

    step = TrainingStep(descent(model, reading), model.parameters(), device)
    losses, _ = train(model, batches([8] * (AFTER + 30), device), step)
    assert step.replays == 0
    assert len([one for one in caplog.messages if "run plainly from now on" in one]) == 1
    assert all(value == value for value in losses)
