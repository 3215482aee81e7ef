"""One cell to one record, on a network of a few weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import tiny_sweep
import torch
from torch import Tensor, nn

from adapters import defenses, models
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages, TrainingContext
from bench import clock, defense_run, run_cell, scoring
from bench.cells import Cell
from bench.defense_run import Clock, _TimedContext, has_effect
from bench.memory import PeakMemory
from bench.provenance import Commit, commit, provenance
from bench.records import Record
from bench.run_cell import CellRunner, _Recent, _Trace
from bench.scoring import Scorer
from bench.seeds import derive_seed
from bench.splits import split_test
from bench.worker import Worker

CPU = torch.device("cpu")


class Scripted(Defense):
    """Does what a test tells it to."""

    name: ClassVar[str] = "scripted"
    seen: ClassVar[list[tuple[LabelledImages, DefenseContext]]] = []

    do: str = "nothing"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        self.seen.append((clean, context))
        if self.do == "leave settings":
            torch.set_grad_enabled(False)
            torch.set_default_dtype(torch.float64)
            torch.set_num_threads(torch.get_num_threads() + 1)
        if self.do == "raise":
            raise RuntimeError("something\nbroke")
        if self.do == "garbage":
            return None  # type: ignore[return-value]
        if self.do == "round":
            model(clean.images).sum().backward()
            context.on_round(model, {"loss": float("nan"), "norm": torch.tensor(2.0)})
            context.on_round(model, {"loss": 1})
        if self.do in ("step", "step and change"):
            for times in range(2 + (self.do == "step and change")):
                with torch.no_grad():
                    next(model.parameters())[0].add_(1.0)
                if times < 2:
                    context.on_round(model, {})
        if self.do == "poison":
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        if self.do == "hook":
            model.register_forward_hook(lambda module, inputs, output: -output)
        if self.do == "spoil":
            clean.images.zero_()
            clean.labels.zero_()
        if self.do == "find":
            details = {"scores": [1.0, float("inf")], "flagged": ()}
            return DefenseResult(model.eval(), "no_trigger_detected", "nothing", details)
        if self.do == "late":
            while not context.out_of_time():
                time.sleep(0.005)
            return DefenseResult(model, "timeout", "stopped")
        return DefenseResult(model.eval())


class Retraining(Scripted):
    """Wants the training data, and looks at five images with a new network."""

    name: ClassVar[str] = "retraining"
    needs_training_data: ClassVar[bool] = True

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        self.seen.append((clean, context))
        assert isinstance(context, TrainingContext)
        new = context.untrained()
        with torch.no_grad():
            new(context.training_data.images[:5].float() / 255)
        return DefenseResult(new.eval())


class Tiny(nn.Module):
    def __init__(self, num_classes: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[0] * shape[1] * shape[2], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    tiny_sweep.write_images(folder)
    return folder


@pytest.fixture(autouse=True)
def _plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(defenses.DEFENSES, "scripted", Scripted)
    monkeypatch.setitem(defenses.DEFENSES, "retraining", Retraining)
    monkeypatch.setitem(models.MODELS, "tiny", Tiny)
    Scripted.seen.clear()


@pytest.fixture(scope="module")
def runner(place: Path) -> CellRunner:
    return CellRunner(place, place / "cache", CPU, Commit("c0ffee", False))


def _cell(do: str = "nothing", **changes: Any) -> Cell:
    tree = {
        "dataset": tiny_sweep.DATASET,
        "model": "tiny",
        "attack": "badnets",
        "target": 1,
        "poison_ratio": 0.2,
        "training": {"epochs": 2, "batch_size": 16},
        "min_asr": 0.0,
        "clean_size": 12,
        "defense": {"name": "scripted", "do": do},
        **changes,
    }
    return Cell.model_validate(tree)


def _clean_cell(do: str = "nothing", **changes: Any) -> Cell:
    return _cell(do, attack=None, target=None, poison_ratio=None, **changes)


def test_a_clean_model_has_an_acc_and_no_asr(runner: CellRunner) -> None:
    record = runner.run(_clean_cell("round", min_asr=0.9))
    assert (record.status, record.reason) == ("ok", None)
    assert Record.model_validate_json(record.line()) == record
    assert record.victim is not None
    assert record.acc is not None
    assert record.acc == record.victim.acc
    assert record.acc_interval is not None
    for name in ("asr", "asr_interval", "ra", "ra_interval", "der", "der_interval", "error_gap", "seconds_to_effect"):
        assert getattr(record, name) is None, name
    assert (record.triggers, record.victim.asr, record.victim.ra, record.victim.triggers) == ((), None, None, ())
    assert [one["asr"] for one in record.rounds] == [None, None]
    assert record.rounds[0]["acc"] == record.acc
    again = CellRunner(runner._data_root, runner._cache_dir, CPU, Commit("c0ffee", False)).run(_clean_cell("round"))
    assert again.acc == record.acc  # its outcomes are kept, and read again


def test_a_clean_models_acc_is_that_of_its_predictions(runner: CellRunner) -> None:
    found = runner.prepare(_clean_cell())
    images, labels = found.scorer.images.float() / 255, found.scorer.labels
    with torch.no_grad():
        share = (found.victim.model(images).argmax(1) == labels).float().mean()
    assert found.before.acc == pytest.approx(float(share))


def test_a_clean_model_can_be_retrained_by_a_defense_that_wants_its_data(runner: CellRunner) -> None:
    record = runner.run(_clean_cell(defense={"name": "retraining", "do": "nothing"}))
    assert (record.status, record.asr) == ("ok", None)
    context = Scripted.seen[-1][1]
    assert isinstance(context, TrainingContext)
    assert torch.equal(context.training_data.labels, runner.prepare(_clean_cell()).data.train.labels)


def test_runs_differ_in_the_defenses_seed_and_in_nothing_else(runner: CellRunner) -> None:
    for run in (None, 1, 2):
        assert runner.run(_cell(run=run)).status == "ok"
    (first, second, third) = Scripted.seen
    assert len({context.seed for _, context in Scripted.seen}) == 3
    assert torch.equal(first[0].images, second[0].images)
    assert torch.equal(first[0].images, third[0].images)


def test_rounds_hold_the_asr_of_each_of_several_triggers(runner: CellRunner) -> None:
    several = ({"attack": "badnets", "target": 1}, {"attack": "blend", "target": 2})
    record = runner.run(_cell("round", attack=several, target=None, mix="united"))
    assert record.status == "ok", record.reason
    expected = {one.trigger: one.asr for one in record.triggers}
    assert set(expected) == {"badnets", "blend"}
    assert [one["asr_by_trigger"] for one in record.rounds] == [expected, expected]
    assert "asr_by_trigger" not in runner.run(_cell("round")).rounds[0]


def test_layouts_are_in_the_record_on_request(runner: CellRunner) -> None:
    record = runner.run(_cell("poison", tsne_images=12))
    assert record.tsne is not None
    assert record.tsne.triggered.count(0) == 12
    assert record.tsne.triggered.count(1) == sum(label != 1 for label in record.tsne.labels[:12])
    assert record.tsne.before == record.tsne.after  # the network's only layer: its input is the image itself
    assert runner.run(_cell("poison")).tsne is None


def test_a_record_is_complete_and_valid(runner: CellRunner) -> None:
    record = runner.run(_cell("round"))
    assert Record.model_validate_json(record.line()) == record
    assert (record.status, record.reason, record.id) == ("ok", None, _cell("round").id)
    assert record.victim is not None
    assert record.victim.id == _cell().victim_id
    assert (record.acc, record.asr, record.ra) == (record.victim.acc, record.victim.asr, record.victim.ra)
    assert record.der == 0.5
    for name in ("acc", "asr", "ra", "der", "error_gap"):
        low, high = getattr(record, f"{name}_interval")
        assert 0 <= low <= getattr(record, name) <= high <= 1
    assert record.seconds is not None
    assert record.peak_memory_bytes is not None
    assert record.provenance is not None
    assert (record.provenance.commit, record.provenance.cells_beside) == ("c0ffee", 0)
    assert len(record.data or "") == 16


def test_a_victim_from_a_checkpoint_tells_no_seconds_of_training(runner: CellRunner, tmp_path: Path) -> None:
    torch.save({"net": Tiny(tiny_sweep.CLASSES, (3, 16, 16)).state_dict()}, tmp_path / "theirs.pth")
    part = {"checkpoint": str(tmp_path / "theirs.pth"), "trigger": "badnets", "target": 1}
    one = _cell(attack=None, target=None, poison_ratio=None, training=None, victim=part)
    record = Record.model_validate_json(runner.run(one).line())
    assert record.status == "ok", record.reason
    assert record.victim is not None
    assert record.victim.seconds is None
    assert Worker(runner).do({"kind": "victim", "cell": one.model_dump_json()})["work"] == 0


def test_rounds_are_scored_and_neither_counted_nor_timed(runner: CellRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only scoring moves."""
    ticks, score = [0.0], scoring.Scorer.score

    def slow(self: scoring.Scorer, model: nn.Module) -> scoring.Scores:
        ticks[0] += 100
        return score(self, model)

    monkeypatch.setattr(scoring.Scorer, "score", slow)
    monkeypatch.setattr(defense_run, "now", lambda device: ticks[0])
    record = runner.run(_cell("round"))
    assert ticks == [200]
    assert record.seconds == 0
    assert {row["elapsed_seconds"] for row in record.rounds} == {0}
    assert record.passes is not None
    assert (record.passes.forward, record.passes.backward) == (12, 12)
    assert [row["loss"] for row in record.rounds] == [None, 1]
    assert record.rounds[0]["norm"] == 2.0
    assert all({"acc", "asr", "elapsed_seconds"} <= set(row) for row in record.rounds)


def test_memory_that_scoring_takes_is_not_the_defenses(runner: CellRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    watching: list[bool] = []

    class Watched(PeakMemory):
        def resume(self) -> None:
            watching.append(True)
            super().resume()

        def pause(self) -> None:
            watching.append(False)
            super().pause()

    score = scoring.Scorer.score
    during: list[bool] = []

    def seen(self: scoring.Scorer, model: nn.Module) -> scoring.Scores:
        during.append(watching[-1])
        return score(self, model)

    monkeypatch.setattr(defense_run, "PeakMemory", Watched)
    monkeypatch.setattr(scoring.Scorer, "score", seen)
    assert runner.run(_cell("round")).status == "ok"
    assert during == [False, False]
    assert watching == [True, False, True, False, True, False]


def test_rounds_are_scored_on_a_sample_and_what_comes_out_on_all(
    runner: CellRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = runner.run(_cell("round"))
    monkeypatch.setattr(run_cell, "TRACE_IMAGES", 10)
    record = runner.run(_cell("round", dataset=tiny_sweep.DATASET, seed=1))
    scorer = runner.prepare(_cell("round", seed=1)).scorer
    assert {row["images"] for row in every.rounds} == {len(scorer.labels)}
    assert {row["images"] for row in record.rounds} == {len(scorer.sample(10)[1])} != {len(scorer.labels)}
    assert record.acc == scorer.score(runner.prepare(_cell(seed=1)).victim.model).acc


def test_rounds_are_scored_in_the_precision_of_training_and_what_comes_out_in_float32(
    runner: CellRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_cell, "autocast_dtype", lambda device: torch.bfloat16)
    cell = _cell("step", seed=2)
    runner.prepare(cell)
    seen: list[torch.dtype] = []
    guess = scoring.predict

    def predict(model: nn.Module, *rest: Any) -> Tensor:
        seen.append(model(torch.zeros(1, 3, 16, 16)).dtype)
        return guess(model, *rest)

    monkeypatch.setattr(scoring, "predict", predict)
    record = runner.run(cell)
    assert len(record.rounds) == 2
    assert seen == [torch.bfloat16] * 4 + [torch.float32] * 3  # two rounds; what comes out; the error gap


def test_a_defense_gets_the_clean_set_and_nothing_of_the_attack(runner: CellRunner) -> None:
    runner.run(_cell(clean_size=7, radius=3.0))
    clean, context = Scripted.seen[0]
    assert clean.images.shape == (7, 3, 16, 16)
    assert clean.images.dtype == torch.float32
    assert float(clean.images.max()) <= 1
    assert (context.num_classes, context.radius) == (3, 3.0)
    prepared = runner.prepare(_cell())
    pool = split_test(prepared.data, derive_seed("split", tiny_sweep.DATASET, 0)).pool_indices
    assert torch.equal(clean.labels, prepared.data.test.labels[pool[:7]])


def test_a_defense_cannot_touch_the_victim(runner: CellRunner) -> None:
    before = runner.run(_cell())
    ruined = runner.run(_cell("poison"))
    assert ruined.acc == 0
    assert runner.run(_cell()).acc == before.acc


def test_a_defense_cannot_touch_the_clean_set_that_its_error_gap_is_of(runner: CellRunner) -> None:
    spoilt, left = (runner.run(_cell(do, clean_size=7)).error_gap for do in ("spoil", "nothing"))
    assert spoilt == left
    assert left is not None


def test_cells_share_their_random_numbers_but_for_what_names_them(runner: CellRunner) -> None:
    for changes in ({}, {"clean_size": 5}, {"seed": 1}, {"target": 2}):
        runner.run(_cell(**changes))
    first, size, seed, target = (context.seed for _, context in Scripted.seen)
    assert first == size
    assert len({first, seed, target}) == 3


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("raise", ("RuntimeError: something broke", "test_run_cell.py", "in run")),
        ("garbage", ("TypeError: defense 'scripted' returned NoneType; expected a DefenseResult",)),
    ],
)
def test_a_failure_is_a_record_with_its_reason(runner: CellRunner, do: str, words: tuple[str, ...]) -> None:
    record = runner.run(_cell(do))
    assert record.status == "failed"
    assert record.reason is not None
    assert "\n" not in record.reason
    for word in words:
        assert word in record.reason
    assert record.provenance is not None
    assert record.acc is None


def test_a_victim_that_cannot_be_had_is_a_failed_record(runner: CellRunner) -> None:
    record = runner.run(_cell(target=99))
    assert record.status == "failed"
    assert "target" in str(record.reason)


def test_no_defense_is_scored_on_an_attack_that_failed(runner: CellRunner) -> None:
    weak = {"poison_ratio": 0.02, "training": {"epochs": 1, "batch_size": 64, "peak_lr": 1e-6}}
    record = runner.run(_cell(min_asr=1.0, **weak))
    assert record.status == "attack_failed"
    assert "expected at least 1.0000" in str(record.reason)
    assert record.victim is not None
    assert (record.acc, record.asr, record.seconds, Scripted.seen) == (None, None, None, [])


def test_all_to_all_is_held_to_its_own_accuracy(runner: CellRunner) -> None:
    record = runner.run(_cell(target="all_to_all", min_asr=1.0))
    assert record.victim is not None
    assert (record.status == "attack_failed") == (record.victim.asr < record.victim.acc)


def test_a_defense_out_of_time(runner: CellRunner) -> None:
    record = runner.run(_cell("late", time_limit=0.05))
    assert (record.status, record.reason) == ("timeout", "stopped")
    assert record.acc is not None
    assert record.seconds is not None
    assert record.seconds >= 0.05


def test_what_a_defense_found_is_in_the_record(runner: CellRunner) -> None:
    record = runner.run(_cell("find"))
    assert (record.status, record.reason) == ("no_trigger_detected", "nothing")
    assert record.details == {"scores": [1.0, None], "flagged": []}
    assert record.acc is not None  # scored like any other
    assert Record.model_validate_json(record.line()) == record


def test_the_poisoned_training_data_go_to_the_defense_that_asks(runner: CellRunner) -> None:
    runner.run(_cell())
    assert not isinstance(Scripted.seen[0][1], TrainingContext)
    Scripted.seen.clear()
    cell = _cell("retrain", defense={"name": "retraining", "do": "retrain"})
    record = runner.run(cell)
    assert record.status == "ok", record.reason
    context = Scripted.seen[0][1]
    assert isinstance(context, TrainingContext)
    data, prepared = context.training_data, runner.prepare(cell)
    train = prepared.data.train
    changed = data.labels != train.labels
    assert int(changed.sum()) == prepared.victim.meta["poisoned"] > 0
    assert (data.labels[changed] == 1).all()
    assert data.images.dtype == torch.uint8
    assert not torch.equal(data.images[changed], train.images[changed])
    assert torch.equal(data.images[~changed], train.images[~changed])
    assert record.passes is not None
    assert (record.passes.forward, record.passes.backward) == (5, 0)  # counted, though it is no copy of the victim


def test_evasion_accuracy_on_request(runner: CellRunner) -> None:
    assert runner.run(_cell()).evasion_accuracy is None
    record = runner.run(_cell(evasion_radius=0.0))
    assert record.evasion_accuracy is not None
    assert record.evasion_accuracy == pytest.approx(record.acc)  # every scoring image, and no perturbation
    assert record.evasion_accuracy_interval is not None
    attacked = runner.run(_cell(evasion_radius=2.0)).evasion_accuracy
    assert attacked is not None
    assert attacked < record.evasion_accuracy


def test_the_clock_stands_still_while_stopped() -> None:
    clock = Clock(CPU)
    clock.start()
    clock.stop()
    stood = clock.seconds
    time.sleep(0.01)
    assert clock.seconds == stood
    clock.stop()
    assert clock.seconds == stood


def test_recent_values_are_made_once_and_few_are_kept() -> None:
    made: list[int] = []
    recent: _Recent[int] = _Recent(2)

    def make(key: int) -> int:
        made.append(key)
        return key

    for key in (1, 2, 1, 3, 1, 2):
        assert recent.get(key, lambda key=key: make(key)) == key  # type: ignore[misc]
    assert made == [1, 2, 3, 2]


def test_peak_memory_sees_what_is_held_and_not_what_a_pause_holds() -> None:
    memory = PeakMemory(CPU)
    memory.pause()
    kept = torch.ones(8 << 20)
    del kept
    memory.resume()
    memory.pause()
    assert memory.bytes < 16 << 20
    memory.resume()
    block = torch.ones(16 << 20)  # 64 MiB
    memory.pause()
    del block
    if os.path.exists("/proc/self/clear_refs"):
        assert memory.bytes >= 60 << 20


def test_provenance_of_this_checkout() -> None:
    found = provenance(CPU, commit())
    assert found.threads == torch.get_num_threads()
    assert found.started.endswith("+00:00")
    assert found.commit is None or len(found.commit) == 40


def test_what_torch_imports_late_is_imported_before_any_clock_runs() -> None:
    code = (
        "import sys, torch; from bench.clock import load_what_torch_loads_late as load;"
        "early = 'torch._dynamo' in sys.modules; load(); print(early, 'torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == ["False", "True"]


def test_a_runner_imports_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[bool] = []
    monkeypatch.setattr(run_cell, "load_what_torch_loads_late", lambda: called.append(True))
    CellRunner(tmp_path, tmp_path, torch.device("cpu"), Commit(None, None))
    assert called == [True]


def test_the_stopwatch_runs_while_models_are_scored_and_not_while_they_are_defended(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watch(clock.Stopwatch):
        on = False

        def __enter__(self) -> None:
            assert not self.on
            self.on = True

        def __exit__(self, *_: object) -> None:
            self.on = False

    runner = CellRunner(place, place / "another cache", CPU, Commit(None, None))
    runner.scoring = Watch()
    seen: list[tuple[str, bool]] = []
    outcomes, work = Scorer.outcomes, Scripted.run

    def score(self: Scorer, model: nn.Module) -> Any:
        seen.append(("scored", runner.scoring.on))  # type: ignore[attr-defined]
        return outcomes(self, model)

    def run(self: Scripted, *given: Any) -> DefenseResult:
        seen.append(("defended", runner.scoring.on))  # type: ignore[attr-defined]
        return work(self, *given)

    monkeypatch.setattr(Scorer, "outcomes", score)
    monkeypatch.setattr(Scripted, "run", run)
    assert runner.run(_cell("round")).status == "ok"
    assert seen == [("scored", True), ("defended", False), ("scored", True), ("scored", True)]
    del seen[:]
    assert runner.run(_cell("poison")).status == "diverged"
    assert seen == [("defended", False), ("scored", True)]


def test_torchs_settings_that_a_defense_changes_are_put_back(runner: CellRunner) -> None:
    """Else the next cell on the worker would have them, and take the blame."""

    def found() -> tuple[bool, torch.dtype, int]:
        return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()

    before = found()
    try:
        assert runner.run(_cell("leave settings")).status == "ok"
        assert found() == before
    finally:
        torch.set_grad_enabled(before[0])
        torch.set_default_dtype(before[1])
        torch.set_num_threads(before[2])


@pytest.mark.parametrize(
    ("acc", "asr", "effect"),
    [(0.9, 0.0, True), (0.9, 0.199, True), (0.9, 0.2, False), (0.9, 0.25, False), (0.81, 0.0, True),
     (0.79, 0.0, False), (1.0, 0.0, True), (0.2, 0.0, False)],
)  # fmt: skip
def test_effect_is_an_asr_under_a_fifth_and_ten_points_of_acc_at_most(acc: float, asr: float, effect: bool) -> None:
    assert has_effect(0.9, acc, asr) is effect
    assert has_effect(0.3, 0.9, 0.0)  # more accurate than before is no loss
    assert not has_effect(0.9, acc, asr, helper=True)


def _scores(acc: float, asr: float) -> Any:
    return SimpleNamespace(acc=acc, asr=asr, clean_count=10, per_trigger=())


def test_the_first_round_with_effect_counts_against_the_victim_on_the_same_images() -> None:
    """Helpers' rounds do not; the traced images' own ACC is what is lost of, not that of all images."""
    found = iter([(0.9, 0.9), (0.9, 0.0), (0.9, 0.0), (0.65, 0.0), (0.85, 0.0), (0.9, 0.0)])
    tracer = SimpleNamespace(score=lambda model: _scores(*next(found)))
    prepared = SimpleNamespace(tracer=tracer, before_traced=_scores(0.9, 1.0), before=_scores(0.7, 1.0))
    trace = _Trace(prepared, clock.Stopwatch())  # type: ignore[arg-type]
    for seconds, helper in ((1.0, False), (2.0, True), (3.0, True), (4.0, False), (5.0, False), (6.0, False)):
        trace(nn.Identity(), {"helper": helper}, seconds)
    assert trace.seconds_to_effect == 5.0


def test_what_comes_out_is_compared_with_the_victim(runner: CellRunner) -> None:
    record = runner.run(_cell("poison"))  # NaN: nothing right, nothing hit, whatever the image
    assert record.victim is not None
    assert record.victim.asr is not None
    assert record.victim.asr != record.victim.acc
    assert record.victim.ra
    assert (record.acc, record.asr) == (0, 0)
    assert record.der == pytest.approx((record.victim.asr - record.victim.acc + 1) / 2)
    assert record.error_gap == 0  # of all images wrong and all images wrong
    assert record.seconds_to_effect is None  # all of the accuracy is lost


def test_a_defense_that_acts_by_a_hook_alone_is_scored(runner: CellRunner) -> None:
    record = runner.run(_cell("hook"))
    assert record.status == "ok", record.reason
    assert record.victim is not None
    assert record.acc is not None
    assert record.acc < record.victim.acc


def test_only_the_defenses_own_seconds_run_out() -> None:
    for own, late in ((0.5, False), (1.5, True)):
        context = _TimedContext(num_classes=3, device=CPU, seed=0, deadline=0.0, clock=Clock(CPU, own), limit=1.0)
        assert context.out_of_time() is late


def test_layouts_are_of_the_victim_and_then_of_what_came_out(
    runner: CellRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(run_cell, "lay_out", lambda models, *rest: seen.extend(models))
    runner.run(_cell("poison", tsne_images=12))
    assert seen[0] is runner.prepare(_cell("poison")).victim.model
    assert all(bool(x.isfinite().all()) for x in seen[0].parameters())
    assert not all(bool(x.isfinite().all()) for x in seen[1].parameters())


def test_seconds_of_several_spans_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 2.0, 10.0, 13.0))
    monkeypatch.setattr(defense_run, "now", lambda device: next(times))
    watch = Clock(CPU)
    for _ in "12":
        watch.start()
        watch.stop()
    assert watch.seconds == 5.0
