"""Optimised triggers in the harness: fitted once to a clean model that is trained once, and shared."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_sweep
import torch
from made_data import data
from torch import nn

from adapters import attacks, defenses
from adapters.attacks import FittedTrigger, Pattern
from adapters.attacks.invisible import L0Invisible, L2Invisible
from adapters.attacks.smooth import Smooth
from adapters.attacks.trojan import TrojanSquare, TrojanWatermark
from adapters.protocols import (
    Defense,
    DefenseContext,
    DefenseResult,
    LabelledImages,
    TrainingContext,
    TrainingData,
)  # fmt: skip
from bench import sweep, triggers, victims
from bench.cells import Cell
from bench.provenance import Commit
from bench.records import Record, RecordStore
from bench.run_cell import CellRunner
from bench.triggers import cell_attacks, clean_cell
from bench.victims import VictimStore

CPU = torch.device("cpu")
QUICK = (
    L0Invisible(steps=1),
    L2Invisible(steps=1, stages=1),
    Smooth(steps=2),
    TrojanSquare(steps=2),
    TrojanWatermark(steps=2),
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for fit in QUICK:
        monkeypatch.setitem(attacks.FITS, fit.name, fit)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was trained and fitted, in order."""
    done: list[str] = []
    train, run_fit = victims.train, attacks.run_fit

    def counted(model: Any, images: Any, labels: Any, *rest: Any, **named: Any) -> Any:
        done.append("train")
        return train(model, images, labels, *rest, **named)

    def fitted(fit: Any, *rest: Any) -> Any:
        done.append(fit.name)
        return run_fit(fit, *rest)

    monkeypatch.setattr(victims, "train", counted)
    monkeypatch.setattr(attacks, "run_fit", fitted)
    return done


def cell(**changes: Any) -> Cell:
    parts: dict[str, Any] = {
        "dataset": "made",
        "model": "simplified_vgg",
        "attack": "trojan_sq",
        "target": 1,
        "poison_ratio": 0.2,
        "training": {"epochs": 1, "batch_size": 32},
        "defense": {"name": "none"},
    }
    return Cell.model_validate({**parts, **changes})


def test_one_clean_model_and_one_trigger_for_all_their_cells(tmp_path: Path, work: list[str]) -> None:
    store = VictimStore(tmp_path)
    ((first, mapping),) = store.attacks(cell(), data(), CPU)
    assert isinstance(first, FittedTrigger)
    assert (first.name, int(mapping(torch.tensor([0])))) == ("trojan_sq", 1)
    assert work == ["train", "trojan_sq"]
    for changes in ({"poison_ratio": 0.1}, {"seed": 3}, {"model": "test_resnet"}, {"min_asr": 0.1}):
        ((again, _),) = VictimStore(tmp_path).attacks(cell(**changes), data(), CPU)
        assert isinstance(again, FittedTrigger)
        assert again.digest == first.digest
    assert work == ["train", "trojan_sq"]
    ((other, _),) = store.attacks(cell(target="all_to_all"), data(), CPU)
    assert isinstance(other, FittedTrigger)
    assert other.digest != first.digest
    store.attacks(cell(attack="smooth"), data(), CPU)
    assert work == ["train", "trojan_sq", "trojan_sq", "smooth"]
    clean = clean_cell(cell(), data().image_shape)
    assert clean.is_clean
    meta = store.get_or_train(clean, data(), CPU).meta
    assert meta["poisoned"] == 0
    about = first.provenance
    assert about["clean_model"] == {"id": clean.victim_id, "model": "simplified_vgg", "sha256": meta["sha256"]}
    assert about["settings"] == dataclasses.asdict(TrojanSquare(steps=2))
    assert (about["target"], about["dataset"]) == (1, "made")


def test_every_target_has_a_draw_of_its_own(tmp_path: Path) -> None:
    store, seeds = VictimStore(tmp_path), set[int]()
    for target in (0, 1, "all_to_all"):
        ((trigger, _),) = store.attacks(cell(target=target), data(), CPU)
        assert isinstance(trigger, FittedTrigger)
        seeds.add(trigger.provenance["seed"])
    assert len(seeds) == 3


def test_fitting_and_poisoning_are_timed_and_the_clean_models_training_is_not(
    tmp_path: Path, work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    class Watch:
        def __enter__(self) -> None:
            seen.append(list(work))

        def __exit__(self, *_: object) -> None:
            seen.append(list(work))

    monkeypatch.setattr(triggers, "Stopwatch", Watch)
    store = VictimStore(tmp_path)
    for _ in "12":  # the second time all of it is at hand
        store.get_or_train(cell(), data(), CPU)
    fitted = ["train", "trojan_sq"]
    assert seen == [["train"], fitted, fitted, fitted], "around the fit, then around the poisoning"
    assert work == [*fitted, "train"]


def test_the_clean_model_follows_images_and_training_alone() -> None:
    one = clean_cell(cell(), data().image_shape)
    assert (one.model, one.training, one.seed) == ("simplified_vgg", cell().training, 0)
    assert one == clean_cell(
        cell(seed=5, attack="blend", target=2, model="resnet18", poison_ratio=0.5), data().image_shape
    )
    assert one != clean_cell(cell(training={"epochs": 2, "batch_size": 32}), data().image_shape)
    assert clean_cell(cell(), (3, 8, 7)).model == "resnet18"
    victim = {"checkpoint": "x.pth", "trigger": "smooth", "target": 1}
    bare = cell(attack=None, target=None, poison_ratio=None, training=None, victim=victim)
    assert clean_cell(bare, data().image_shape).training is not None


def test_many_at_once_fit_once(tmp_path: Path, work: list[str]) -> None:
    names = ["trojan_sq", "smooth", "trojan_sq", "smooth"]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda name: VictimStore(tmp_path).attacks(cell(attack=name), data(), CPU), names))
    digests = [one.digest for ((one, _),) in got if isinstance(one, FittedTrigger)]
    assert digests[:2] == digests[2:]
    assert sorted(work) == ["smooth", "train", "trojan_sq"]


def test_damage_and_other_images_are_noticed(tmp_path: Path, work: list[str], caplog: pytest.LogCaptureFixture) -> None:
    store = VictimStore(tmp_path)
    ((first, _),) = store.attacks(cell(), data(), CPU)
    (path,) = (tmp_path / "triggers").glob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        ((again, _),) = store.attacks(cell(), data(), CPU)
    assert isinstance(first, FittedTrigger)
    assert isinstance(again, FittedTrigger)
    assert again.digest == first.digest, "a fit is a function of the cell"
    assert "is fitted again: its tensors have SHA-256" in caplog.text
    with caplog.at_level(logging.WARNING):
        store.attacks(cell(), data(seed=1), CPU)
    assert "the images of 'made' are not those it was fitted on" in caplog.text


def test_a_victim_of_another_trigger_is_trained_again(
    tmp_path: Path, work: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same settings may give another trigger elsewhere: a victim does not answer to one it was not trained on."""
    store = VictimStore(tmp_path)
    store.get_or_train(cell(), data(), CPU)
    (path,) = (tmp_path / "triggers").glob("*.safetensors")
    trigger = FittedTrigger.load(path)
    trigger.pattern = trigger.pattern.flip(0)
    trigger.save(path)
    with caplog.at_level(logging.WARNING):
        victim = store.get_or_train(cell(), data(), CPU)
    assert "its optimised triggers are not those that are at hand" in caplog.text
    assert victim.meta["fitted"] == {"trojan_sq": trigger.digest}


def test_a_fit_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Smooth):
        def __call__(self, context: attacks.FitContext) -> Pattern:
            nan = torch.full(context.shape, float("nan"))
            return Pattern(torch.ones(1, 1, 1), nan, {})

    monkeypatch.setitem(attacks.FITS, "smooth", Broken())
    store = VictimStore(tmp_path)
    with pytest.raises(ValueError, match="the fit of smooth gave values that are not finite"):
        store.attacks(cell(attack="smooth"), data(), CPU)
    assert list((tmp_path / "triggers").glob("*.safetensors")) == []


def test_the_clean_model_is_a_job_where_a_trigger_lacks(tmp_path: Path) -> None:
    store, shape = VictimStore(tmp_path), data().image_shape
    clean = clean_cell(cell(), shape)
    several = cell(attack=SEVEN, target=None)
    assert store.clean_model_to_train(cell(), shape) == store.clean_model_to_train(several, shape) == clean
    assert store.clean_model_to_train(cell(attack="badnets"), shape) is None
    store.attacks(cell(), data(), CPU)
    assert store.clean_model_to_train(several, shape) is None, "it is there"
    for path in (tmp_path / "victims").iterdir():
        path.unlink()
    assert store.clean_model_to_train(cell(), shape) is None, "its trigger is there"
    assert store.clean_model_to_train(several, shape) == clean


def test_the_clean_model_is_a_job_where_the_trigger_of_a_checkpoint_lacks(tmp_path: Path) -> None:
    def brought(trigger: Any, target: int = 1) -> Cell:
        victim = {"checkpoint": "x.pth", "trigger": trigger, "target": target, "digest": "1"}
        return cell(attack=None, target=None, poison_ratio=None, training=None, victim=victim)

    store, shape = VictimStore(tmp_path), data().image_shape
    clean = clean_cell(brought("trojan_sq"), shape)
    assert store.clean_model_to_train(brought("trojan_sq"), shape) == clean
    assert store.clean_model_to_train(brought("badnets"), shape) is None
    assert store.clean_model_to_train(brought({"image": "x.png", "mode": "add", "digest": "1"}), shape) is None
    assert store.clean_model_to_train(clean, shape) is None
    trained = cell(training={"epochs": 1, "batch_size": 32})
    store.attacks(trained, data(), CPU)
    path = next((tmp_path / "triggers").glob("*.safetensors"))
    path.rename(store._triggers.path("trojan_sq", 1, clean))
    assert store.clean_model_to_train(brought("trojan_sq"), shape) is None, "it is there"
    assert store.clean_model_to_train(brought("trojan_sq", target=2), shape) == clean


def test_nothing_fits_without_a_fitter() -> None:
    with pytest.raises(ValueError, match="expected what fits 'trojan_sq'"):
        cell_attacks(cell(), data())


SEVEN = [
    {"attack": name, "target": k % 3}
    for k, name in enumerate(["trojan_wm", "trojan_sq", "badnets", "smooth", "blend", "l0_inv", "l2_inv"])
]


def test_a_record_of_seven_triggers(tmp_path: Path) -> None:
    tiny_sweep.write_images(tmp_path)
    tree = {
        "dataset": tiny_sweep.DATASET,
        "attack": SEVEN,
        "target": None,
        "mix": "united",
        "clean_size": 12,
        "min_asr": 0.0,
    }
    record = CellRunner(tmp_path, tmp_path / "cache", CPU, Commit("c0ffee", False)).run(cell(**tree))
    assert record.status == "ok", record.reason
    assert Record.model_validate_json(record.line()) == record
    assert record.victim is not None
    for rows in (record.victim.triggers, record.triggers):
        assert [(row.trigger, row.target) for row in rows] == [(one["attack"], one["target"]) for one in SEVEN]
    assert record.asr == pytest.approx(sum(row.asr for row in record.triggers) / 7)
    assert record.ra == pytest.approx(sum(row.ra for row in record.triggers) / 7)
    seen = {row.trigger: row for row in record.victim.triggers}
    assert seen["badnets"].l0 == 2 * 2  # 4 of 32 pixels, on images of 16
    assert seen["l0_inv"].l0 <= 2
    assert {name for name, row in seen.items() if row.digest} == set(attacks.FITS)
    for row in seen.values():
        assert row.psnr is not None
        assert 0 < row.linf <= 1
        assert row.ssim < 1


class Onlooker(Defense):
    """Keeps the training data it is given."""

    name: ClassVar[str] = "onlooker"
    needs_training_data: ClassVar[bool] = True
    seen: ClassVar[list[TrainingData]] = []

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        assert isinstance(context, TrainingContext)
        self.seen.append(context.training_data)
        return DefenseResult(model.eval())


@pytest.mark.parametrize(
    "attack",
    [
        {"attack": "trojan_sq"},
        {"attack": "smooth", "clean_label": True},
        {"attack": "badnets", "clean_label": "adversarial"},
        {"attack": SEVEN, "target": None, "mix": "united"},
        {"attack": SEVEN[:3], "target": None, "mix": "disjoint"},
    ],
    ids=["one", "clean_label", "adversarial", "united", "disjoint"],
)
def test_a_defense_that_trains_anew_gets_what_the_victim_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: dict[str, Any]
) -> None:
    tiny_sweep.write_images(tmp_path)
    trained: list[TrainingData] = []
    train = victims.train

    def watched(model: Any, images: Any, labels: Any, *rest: Any) -> Any:
        trained.append(TrainingData(images, labels, rest[-1]))
        return train(model, images, labels, *rest)

    monkeypatch.setattr(victims, "train", watched)
    monkeypatch.setitem(defenses.DEFENSES, "onlooker", Onlooker)
    Onlooker.seen.clear()
    tree = {"dataset": tiny_sweep.DATASET, "clean_size": 12, "min_asr": 0.0, "defense": {"name": "onlooker"}, **attack}
    runner = CellRunner(tmp_path, tmp_path / "cache", CPU, Commit("c0ffee", False))
    one = cell(**{"poison_ratio": 0.1, **tree})
    assert runner.run(one).status == "ok"
    clean, poisoned = trained
    (given,) = Onlooker.seen
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(given, poisoned, strict=True))
    assert given.images.dtype == torch.uint8
    copies = len(SEVEN) if one.mix == "united" else 1
    assert len(given.rows) == len(given.labels) == copies * len(clean.labels)
    changed = (given.images[given.rows] != clean.images.repeat(copies, 1, 1, 1)).flatten(1).any(dim=1)
    assert 0 < int(changed.sum()) <= runner.prepare(one).victim.meta["poisoned"]


def test_records_from_before_triggers_had_figures_are_read() -> None:
    tree = Record(id=cell().id, cell=cell(), status="failed").model_dump(mode="json", by_alias=True)
    del tree["triggers"]
    tree["victim"] = {"id": "x", "acc": 0.9, "asr": 1.0, "ra": 0.0, "seconds": 1.0}
    read = Record.model_validate(tree)
    assert read.triggers == ()
    assert read.victim is not None
    assert read.victim.triggers == ()


@pytest.mark.ray
def test_a_sweep_prepares_what_optimised_triggers_need_once(tmp_path: Path) -> None:
    tiny_sweep.write_images(tmp_path / "data")
    tree = tiny_sweep.tree(grid={"poison_ratio": [0.1, 0.3], "defense": ["none"]})
    tree["cell"]["attack"] = "smooth"
    path = tiny_sweep.write(tmp_path, tree)
    out = tmp_path / "runs"
    assert sweep.main([str(path), "--data-root", str(tmp_path / "data"), "--out", str(out)]) == 0
    records = RecordStore(out / "tiny").read()
    assert [record.status for record in records] == ["ok"] * 2
    assert len(list((out / "cache" / "triggers").glob("*.safetensors"))) == 1
    assert len(list((out / "cache" / "victims").glob("*.safetensors"))) == 3, "two victims, one clean model"
    digests = {record.victim.triggers[0].digest for record in records if record.victim}
    assert len(digests) == 1
    assert None not in digests
