"""Recording and replaying: the bookkeeping on the CPU with a recorder that does the work anew, and CUDA where it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import rank_cases
import torch
from torch import Tensor

from adapters.protocols import PassCounter
from ibau_defense import BALLS, IBAU, L2Ball, Network, UniversalLoss, linearise, unlearning, value_and_gradients
from ibau_defense.ascent import Ascent, ascend
from ibau_defense.cuda import Precision, graphs_for
from ibau_defense.graphs import Graphs, Recording

DTYPE = torch.float64


class _Again:
    """A replay as a device sees it: the same work on the same addresses, whatever Python's variables are by then."""

    def __init__(self, work: Callable[[], Sequence[Tensor]], results: Sequence[Tensor]) -> None:
        self.work, self.results = work, results

    def replay(self) -> None:
        for result, fresh in zip(self.results, self.work(), strict=True):
            result.copy_(fresh)


class Recorder:
    """Records by remembering. ``spoil`` adds to every recorded result; ``fail`` raises as a failed capture does."""

    def __init__(self, spoil: float = 0.0, fail: bool = False) -> None:
        self.spoil, self.fail, self.recorded = spoil, fail, 0

    def aside(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Recording, Sequence[Tensor]]:
        if self.fail:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1
        return _Again(lambda: [x + self.spoil for x in work()], found := [x.clone() for x in work()]), found


def square(x: Tensor) -> list[Tensor]:
    return [x * x]


def test_work_is_run_then_recorded_then_replayed_with_new_inputs() -> None:
    graphs = Graphs(recorder := Recorder())
    for number in range(5):
        x = torch.full((3,), float(number))
        assert torch.equal(graphs.run("square", square, (x,))[0], x * x)
        assert (graphs.replays, recorder.recorded) == (max(0, number - 1), int(number > 0))


def test_results_are_copies_that_later_replays_leave_alone() -> None:
    graphs = Graphs(Recorder())
    results = [graphs.run("square", square, (torch.full((2,), float(k)),))[0] for k in range(6)]
    assert [float(one[0]) for one in results] == [k * k for k in range(6)]


def test_other_shapes_names_dtypes_and_parameters_are_other_work() -> None:
    graphs, theta = Graphs(recorder := Recorder()), torch.ones(2)
    for _ in range(3):
        for x in (torch.ones(2), torch.ones(3), torch.ones(2, dtype=DTYPE)):
            graphs.run("square", square, (x,))
        graphs.run("other", square, (torch.ones(2),))
        graphs.run("scaled", lambda x: [x * theta], (torch.ones(2),), (theta,))
    assert recorder.recorded == 5
    theta.mul_(3)  # in place, as an optimiser does: the recording reads the address
    assert float(graphs.run("scaled", lambda x: [x * theta], (torch.ones(2),), (theta,))[0][0]) == 3
    moved = torch.full((2,), 5.0)
    assert float(graphs.run("scaled", lambda x: [x * moved], (torch.ones(2),), (moved,))[0][0]) == 5


@pytest.mark.parametrize(
    ("recorder", "reason"), [(Recorder(spoil=0.1), "is off by 0.1"), (Recorder(fail=True), "stream is capturing")]
)
def test_a_recording_that_fails_or_is_wrong_is_refused_with_its_reason(
    recorder: Recorder, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Graphs(recorder)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert float(graphs.run("square", square, (torch.full((2,), 3.0),))[0][0]) == 9
    assert graphs.replays == 0
    assert [reason in message for message in caplog.messages] == [True]


def test_no_more_recordings_than_allowed(caplog: pytest.LogCaptureFixture) -> None:
    graphs = Graphs(recorder := Recorder(), most=2)
    for _ in range(3):
        for size in (1, 2, 3, 4):
            graphs.run("square", square, (torch.ones(size),))
    assert recorder.recorded == 2
    assert sum("2 recordings" in message for message in caplog.messages) == 2


def loss_of(graphs: Graphs | None, seed: int = 1) -> UniversalLoss:
    network, (images, labels) = Network(rank_cases.tiny(DTYPE)), rank_cases.clean_set(10, DTYPE)
    network.graphs = graphs
    return UniversalLoss(network, images.roll(seed, 0), labels, penalty=0.01, carriers=torch.arange(10) % 2 == 0)


def test_linearisations_that_share_a_recording_do_not_mix() -> None:
    """Two at once, their products asked for in turn: each gives its own."""
    graphs = Graphs(Recorder())
    shared = loss_of(graphs)
    v, *deltas = torch.randn(4, 3, 8, 8, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    theta = shared.network.theta
    points = [linearise(shared, delta, theta) for delta in (*deltas, *deltas)]
    alone = [linearise(loss_of(None), delta, loss_of(None).network.theta) for delta in (*deltas, *deltas)]
    for _ in range(2):
        for found, expected in zip(points, alone, strict=True):
            assert torch.allclose(found.curvature(v), expected.curvature(v), atol=1e-12)
            for a, b in zip(found.mixed(v), expected.mixed(v), strict=True):
                assert torch.allclose(a, b, atol=1e-12)
            assert torch.allclose(found.gradient, expected.gradient, atol=1e-12)
    assert graphs.replays > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "normalised"])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_an_ascent_is_replayed_step_by_step(optimizer: Any, micro_batch: int | None) -> None:
    graphs = Graphs(recorder := Recorder())
    plain, replayed = (
        ascend(
            [replace(loss_of(one, seed), micro_batch=micro_batch, network=network) for seed in (0, 1)],
            network.theta, torch.zeros(3, 8, 8, dtype=DTYPE), BALLS["l2"](0.5), Ascent(7, 0.1, optimizer),
        )
        for one in (None, graphs)
        for network in (loss_of(one).network,)
    )  # fmt: skip
    assert torch.allclose(plain.delta, replayed.delta, atol=1e-12)
    assert torch.allclose(plain.trace, replayed.trace, atol=1e-12)
    assert (recorder.recorded, graphs.replays) == (1, 5)  # one recording for both mini-batches, the step as a whole


@pytest.mark.parametrize("recipe", list(rank_cases.RECIPES))
def test_every_recipe_gives_the_same_replayed(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = rank_cases.clean_set(40, DTYPE)
    counts = [PassCounter() for _ in range(3)]
    models = [rank_cases.tiny(DTYPE) for _ in counts]
    for counter, model in zip(counts, models, strict=True):
        counter.attach(model)
    ibau = IBAU(L2Ball(1.0), rank_cases.RECIPES[recipe])
    plain = replace(ibau, tally=counts[0]).unlearn(models[0], images, labels)
    graphs = Graphs(Recorder(), most=100, tally=counts[1])
    monkeypatch.setattr(unlearning, "graphs_for", lambda *_: graphs)
    replayed = replace(ibau, tally=counts[1]).unlearn(models[1], images, labels)
    off = replace(ibau, cuda_graphs=False).unlearn(models[2], images, labels)
    assert graphs.replays > 0
    assert counts[0].as_dict() == counts[1].as_dict() == counts[2].as_dict()
    for a, b, c in zip(*(one.model.parameters() for one in (plain, replayed, off)), strict=True):
        assert torch.allclose(a, b, atol=1e-9)
        assert torch.equal(a, c)


def test_nothing_is_recorded_on_the_cpu() -> None:
    assert graphs_for(torch.device("cpu"), Precision(None, tf32=False)) is None


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def on_cuda() -> tuple[torch.device, Graphs]:
    device = torch.device("cuda")
    graphs = graphs_for(device, Precision(None, tf32=False))
    assert graphs is not None
    return device, graphs


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("recipe", list(rank_cases.RECIPES))
@pytest.mark.parametrize("stream", ["default", "another"])
def test_cuda_graphs_leave_the_result_within_the_tolerance(recipe: str, stream: str) -> None:
    device = torch.device("cuda")
    images, labels = (x.to(device) for x in rank_cases.clean_set(40, torch.float32))
    model, ibau = rank_cases.tiny(torch.float32).to(device), IBAU(L2Ball(1.0), rank_cases.RECIPES[recipe])
    chosen = torch.cuda.Stream() if stream == "another" else torch.cuda.current_stream()
    chosen.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(chosen):
        replayed = ibau.unlearn(model, images, labels).model
        plain = replace(ibau, cuda_graphs=False).unlearn(model, images, labels).model
    torch.cuda.synchronize()
    for a, b in zip(plain.parameters(), replayed.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.cuda
@needs_cuda
def test_cuda_passes_and_products_are_captured_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    device, graphs = on_cuda()
    images, labels = (x.to(device) for x in rank_cases.clean_set(10, torch.float32))
    network = Network(rank_cases.tiny(torch.float32).to(device))
    network.graphs = graphs
    loss, v = UniversalLoss(network, images, labels), torch.ones(3, 8, 8, device=device)
    for _ in range(4):
        value_and_gradients(loss, v, network.theta, wrt_theta=True)
        point = linearise(loss, v, network.theta)
        point.mixed(point.curvature(v))
    assert graphs.replays > 0
    assert caplog.messages == []


@pytest.mark.cuda
@needs_cuda
def test_after_a_failed_capture_the_device_draws_and_captures_again(caplog: pytest.LogCaptureFixture) -> None:
    device, graphs = on_cuda()
    x, stream = torch.ones(5, device=device), torch.cuda.current_stream(device)
    for _ in range(3):
        graphs.run("reads on the host", lambda x: [x * float(x.sum())], (x,))
        assert torch.cuda.current_stream(device) == stream, "the failed capture's was left"
        drawn = torch.nn.functional.dropout(torch.ones(10_000, device=device), 0.5)
        assert float(drawn.mean()) == pytest.approx(1, abs=0.1)
    assert graphs.replays == 0
    assert [("capturing" in one, "run plainly" in one) for one in caplog.messages] == [(True, True)]
    for k in range(4):
        assert torch.equal(graphs.run("square", square, (k * x,))[0], k * k * x)
    assert graphs.replays == 2


@pytest.mark.cuda
@needs_cuda
def test_recordings_that_are_gone_hold_no_memory_on_the_device() -> None:
    """cuBLAS keeps a workspace for every stream: one stream is used, however many calls there are."""
    device, held = torch.device("cuda"), []
    images, labels = (x.to(device) for x in rank_cases.clean_set(40, torch.float32))
    model = rank_cases.tiny(torch.float32).to(device)
    for _ in range(4):
        IBAU(L2Ball(1.0), rank_cases.RECIPES["reference"]).unlearn(model, images, labels)
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated(device))
    assert held[1:] == [held[1]] * 3
