"""The timing suite itself: its timer on a defense of known cost, its floors, its refusals. No test asserts a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import pytest
import tiny_sweep
import torch
from torch import Tensor, nn

from adapters import defenses, models
from adapters.errors import UserError
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages, PassCounter
from bench import clock, defense_run
from bench.cells import Cell
from bench.defense_run import Prepared
from bench.provenance import Commit
from bench.records import Passes
from bench.run_cell import CellRunner
from bench.scoring import Scores
from bench.timing import conftest, hardware, test_harness
from bench.timing.effect import Stretch, explore, time_to_effect
from bench.timing.floors import Ceilings, PassTimes
from bench.timing.parts import PARTS, network
from bench.timing.scale import SCALES, name, one_a_dataset
from ibau_defense import UniversalLoss, cuda

CPU = torch.device("cpu")
ROUND, SCORING, COPY = 2.0, 100.0, 50.0
"""Seconds on the fake clock that a round of the fake defense takes; scoring a model; making a copy of one."""
ROUNDS, EFFECT_AT = 5, 3


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


CLOCK = FakeClock()


class Known(Defense):
    """Takes ``ROUND`` seconds a round and marks the model with how many it has done."""

    name: ClassVar[str] = "known_cost"
    started: ClassVar[list[int]] = []
    helpers: ClassVar[int] = 0
    """In how many of its first rounds the model is one that it would not return."""

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        assert isinstance(model, Slow)
        self.started.append(model.done)
        for _ in range(ROUNDS):
            CLOCK.seconds += ROUND
            model.done += 1
            with torch.no_grad():
                model.linear.bias.add_(1e-3)
                model(clean.images)
            context.on_round(model, {"helper": model.done <= self.helpers})
        return DefenseResult(model)


class Slow(nn.Module):
    """A linear network whose copies cost ``COPY`` seconds."""

    def __init__(self, num_classes: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[0] * shape[1] * shape[2], num_classes)
        self.done = 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits

    def __deepcopy__(self, memo: dict[int, Any]) -> Slow:
        CLOCK.seconds += COPY
        made = Slow.__new__(Slow)
        memo[id(self)] = made
        made.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return made


class FakeScorer:
    """Scores cost ``SCORING`` seconds; there is effect from round ``EFFECT_AT`` on."""

    def __init__(self, real: Any, effect_at: int) -> None:
        self._real, self._effect_at = real, effect_at

    def score(self, model: nn.Module) -> Scores:
        assert isinstance(model, Slow)
        CLOCK.seconds += SCORING
        scores: Scores = self._real.score(model)
        return replace(scores, acc=0.9, asr=0.1 if model.done >= self._effect_at else 0.95)

    def __getattr__(self, key: str) -> Any:
        return getattr(self._real, key)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> CellRunner:
    place = tmp_path_factory.mktemp("timing")
    tiny_sweep.write_images(place)
    return CellRunner(place, place / "cache", CPU, Commit(None, None))


@pytest.fixture
def known(runner: CellRunner, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(effect_at) ↦ the cell of the fake defense and its victim, on the fake clock."""
    monkeypatch.setitem(defenses.DEFENSES, "known_cost", Known)
    monkeypatch.setitem(models.MODELS, "slow", Slow)
    monkeypatch.setattr(Known, "started", [])
    cell = Cell.model_validate(
        {
            "dataset": tiny_sweep.DATASET, "model": "slow", "attack": "badnets", "target": 1, "poison_ratio": 0.2,
            "training": {"epochs": 1, "batch_size": 16}, "min_asr": 0.0, "clean_size": 12,
            "defense": {"name": "known_cost"},
        }
    )  # fmt: skip
    prepared = runner.prepare(cell)
    for module in (clock, cuda, defense_run):
        fake = SimpleNamespace(perf_counter=CLOCK, monotonic=CLOCK)
        monkeypatch.setattr(module, "time", fake)

    def make(effect_at: int) -> tuple[Cell, Prepared]:
        before = replace(prepared.before, acc=0.95, asr=0.95)
        fake = FakeScorer(prepared.scorer, effect_at)
        return cell, prepared._replace(before=before, before_traced=before, scorer=fake, tracer=fake)

    return make


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(
    ("effect_at", "last", "seconds"), [(EFFECT_AT, 3, 3 * ROUND), (1, 1, ROUND), (99, None, ROUNDS * ROUND)]
)
def test_the_timer_finds_the_known_cost_of_a_defense(
    benchmark: Any, known: Any, effect_at: int, last: int | None, seconds: float
) -> None:
    """Its own rounds up to effect, to the second: no copy, no scoring, no round after effect is in it."""
    cell, prepared = known(effect_at)
    time_to_effect(benchmark, cell, prepared, CPU, budget=4 * seconds)
    assert benchmark.stats.stats.data == [seconds] * 4
    info = benchmark.extra_info
    assert (info["round"], info["effect"]) == (last, last is not None)
    assert info["own_seconds"] == seconds
    assert (info["asr"], info["acc"]) == (0.1 if last else 0.95, 0.9)
    assert info["passes"] == {"forward": 12 * (last or ROUNDS), "backward": 0}
    assert info["record"]["seconds"] == ROUNDS * ROUND
    assert info["record"]["seconds_to_effect"] == (seconds if last else None)
    assert Known.started == [0] * 5  # once explored, four times timed, each on a fresh copy
    assert prepared.victim.model.done == 0


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(("helpers", "last"), [(3, 4), (4, 5), (5, None)])
def test_the_effect_of_a_helper_is_not_that_of_the_defense(
    benchmark: Any, known: Any, monkeypatch: pytest.MonkeyPatch, helpers: int, last: int | None
) -> None:
    """A teacher may have lost the backdoor long before the student that is returned has."""
    monkeypatch.setattr(Known, "helpers", helpers)
    cell, prepared = known(EFFECT_AT)
    time_to_effect(benchmark, cell, prepared, CPU, budget=0.0)
    info = benchmark.extra_info
    assert info["round"] == last
    assert info["record"]["seconds_to_effect"] == (last or ROUNDS) * ROUND  # what comes out has effect, at the latest


def test_a_run_is_repeated_as_often_as_there_is_time(known: Any) -> None:
    cell, prepared = known(EFFECT_AT)
    stretch = explore(cell, prepared, CPU)
    assert (stretch.last, stretch.seconds) == (EFFECT_AT, EFFECT_AT * ROUND)
    assert [stretch.repetitions(budget) for budget in (0.0, 6.0, 13.0, 1e9)] == [1, 1, 2, 5]
    assert Stretch(stretch.record, None, 0.0).repetitions(20.0) == 5


def test_a_victim_that_does_not_answer_is_not_timed(known: Any) -> None:
    cell, prepared = known(EFFECT_AT)
    failed = prepared._replace(before=replace(prepared.before, asr=0.1))
    with pytest.raises(ValueError, match="expected a victim that answers"):
        explore(cell.model_copy(update={"min_asr": 0.9}), failed, CPU)


def test_a_floor_is_passes_times_the_time_of_one() -> None:
    times = PassTimes(forward=1.0, backward=2.0, backward_to_all=3.0)
    for to_theta, seconds in ((0, 20.0), (2, 22.0), (5, 25.0)):
        assert times.floor(Passes(forward=10, backward=5), to_theta=to_theta) == seconds


COUNTS = {
    "ascent step": (1, 1, 0),
    "gradients of delta and theta": (1, 1, 1),
    "curvature product, exact": (0, 1, 0),  # its graph is there
    "curvature product, directional": (2, 2, 0),
    "mixed product, exact": (0, 1, 1),
    "mixed product, directional": (2, 2, 2),
    "solve, five fixed-point steps": (0, 5, 0),
    "outer step, five exact fixed-point steps": (2, 8, 2),  # gradients, the graph, five products, the mixed one
    "outer step, first term, directional": (3, 3, 3),
}
"""Passes of each image by hand: forward, backward, and of the latter those that reach the parameters."""


def _calls_that_reach(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """An entry for each call of ``torch.autograd.grad`` from now on that asks for a tensor shaped like a parameter."""
    shapes, real, calls = {one.shape for one in model.parameters()}, torch.autograd.grad, list[None]()

    def grad(outputs: Any, inputs: Any, *given: Any, **more: Any) -> Any:
        wanted = (inputs,) if isinstance(inputs, Tensor) else inputs
        calls.extend([None] * any(one.shape in shapes for one in wanted))
        return real(outputs, inputs, *given, **more)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return calls


@pytest.mark.parametrize("part", list(PARTS))
def test_every_part_works_and_its_passes_are_what_they_are_by_hand(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ELU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    counter = PassCounter()
    counter.attach(model)
    loss = UniversalLoss(
        network(model, "float32", twice=PARTS[part].twice), torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    )
    work = PARTS[part].build(loss, 0.1 * torch.randn(3, 8, 8))
    reaching = _calls_that_reach(model, monkeypatch)
    counter.forward = counter.backward = 0
    work()
    found = counter.forward / 6, counter.backward / 6, len(reaching)
    assert found == COUNTS.get(part, found)
    assert len(reaching) == PARTS[part].to_theta
    assert counter.forward + counter.backward > 0


def test_the_scales_are_sweeps_that_load_and_whose_cells_have_names_of_their_own(tmp_path: Path) -> None:
    for scale in SCALES.values():
        cells = scale.cells(tmp_path)
        assert len({name(cell) for cell in cells}) == len(cells) > 5
        assert {cell.defense["name"] for cell in cells} > {"ibau", "neural_cleanse", "tabor", "fine_pruning", "nad"}
        assert len({cell.dataset for cell in one_a_dataset(cells)}) == len(one_a_dataset(cells))
    small = {cell.defense["name"] for cell in SCALES["small"].cells(tmp_path)}
    assert small == set(defenses.DEFENSES) - {"none"}


class FakeBenchmark:
    """Does the work once."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.given: tuple[Any, ...] = ()

    def pedantic(self, work: Any, *, setup: Any, **more: Any) -> None:
        self.given, _ = setup()
        work(*self.given)


def test_the_timing_of_training_tells_of_the_model_that_it_trained(
    runner: CellRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "slow", Slow)
    cell = Cell.model_validate(
        {
            "dataset": tiny_sweep.DATASET, "model": "slow", "attack": "badnets", "target": 1,
            "poison_ratio": 0.2, "training": {"epochs": 1, "batch_size": 16}, "defense": {"name": "none"},
        }
    )  # fmt: skip
    prepared = runner.prepare(cell)
    before = replace(prepared.before, acc=0.123, asr=0.456)
    prepares: Any = SimpleNamespace(prepare=lambda one: prepared._replace(before=before))
    benchmark, ceilings = FakeBenchmark(), Ceilings(1.0, {"float32": 1.0, "bfloat16": 1.0})
    test_harness.test_training(benchmark, cell, True, prepares, CPU, {}, ceilings)
    after = prepared.scorer.score(*benchmark.given)
    assert (benchmark.extra_info["acc"], benchmark.extra_info["asr"]) == (after.acc, after.asr)


def test_the_folder_of_the_json_is_made_at_the_start(tmp_path: Path) -> None:
    def configure(path: Path | IO[bytes] | None) -> None:
        conftest.pytest_configure(SimpleNamespace(getoption=lambda *given: path))  # type: ignore[arg-type]

    configure(None)
    configure(tmp_path / "new" / "deep" / "digits.json")
    assert (tmp_path / "new" / "deep").is_dir()
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("wb") as opened:  # as pytest-benchmark before 5.3 hands it over
        configure(opened)
    with pytest.raises(pytest.UsageError, match=r"^--benchmark-json: cannot write to .*file") as caught:
        configure(tmp_path / "file" / "digits.json")
    assert "\n" not in str(caught.value)


def test_timings_of_other_hardware_are_refused_in_one_line() -> None:
    here = {"device": "A (2 CPUs)", "threads": 1, "torch": "2.6"}
    hardware.check_same(here, {**here, "torch": "2.7"}, "x.json")
    with pytest.raises(UserError, match=r"x\.json has device 'B'; expected 'A \(2 CPUs\)'"):
        hardware.check_same(here, {**here, "device": "B"}, "x.json")
    with pytest.raises(pytest.UsageError, match=r"^--benchmark-compare: .* has threads 2; expected 1") as caught:
        conftest.pytest_benchmark_compare_machine_info(
            None,
            here,
            {"machine_info": {**here, "threads": 2}, "datetime": "2026"},  # type: ignore[arg-type]
        )
    assert "\n" not in str(caught.value)


def test_facts_say_where_a_timing_comes_from() -> None:
    found = hardware.facts(CPU)
    assert found.keys() == {"commit", "dirty", "python", "torch", "package", "device", "threads", "load"}
    assert found.keys() >= set(hardware.SAME)
