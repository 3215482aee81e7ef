"""Clean labels with the adversarial step: what is perturbed, how far, and on which model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import data
from torch import Tensor, nn
from torch.nn import functional

from adapters.attacks import (
    AdversarialCleanLabel,
    AdversarialPerturbation,
    AllToOne,
    CleanLabel,
    PoisonedSet,
    build,
    poison,
    poison_copies,
)
from adapters.protocols import LabelledImages
from bench import victims
from bench.cells import Cell
from bench.jobs import JobQueue
from bench.provenance import Commit
from bench.run_cell import CellRunner
from bench.triggers import attack_hash, cell_attacks, clean_cell
from bench.victims import VictimStore, poisoned_training_set

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)
LEVELS = 16
light = settings(max_examples=6, deadline=None)


def network(seed: int = 0, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, classes)
        return nn.Sequential(*layers).eval()


def perturbation(model: nn.Module, classes: int = 3, **changes: Any) -> AdversarialPerturbation:
    return AdversarialPerturbation(lambda: model, "digest", classes, CPU, **changes)


def training_set(count: int, seed: int = 0) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(count) % 3)


def moved(before: Tensor, after: Tensor) -> Tensor:
    return (after.to(torch.int16) - before.to(torch.int16)).abs()


@light
@given(seed=st.integers(0, 99), count=st.integers(0, 4), levels=st.integers(1, 32), steps=st.integers(1, 4))
def test_every_image_stays_within_its_ball_and_is_harder(seed: int, count: int, levels: int, steps: int) -> None:
    model, train = network(seed), training_set(count, seed)
    before, state = train.images.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    perturb = perturbation(model, eps=levels / 255, steps=steps)
    found = perturb(train.images, train.labels)
    assert torch.equal(train.images, before)
    assert (found.dtype, found.shape) == (torch.uint8, before.shape)
    assert int(moved(before, found).max() if count else 0) <= levels
    assert torch.equal(found, perturb(train.images, train.labels)), "nothing is drawn"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(one.requires_grad and one.grad is None for one in model.parameters())
    if count:
        clean, hard = (functional.cross_entropy(model(one / 255), train.labels) for one in (before, found))
        assert hard > clean


def test_on_a_linear_model_it_is_the_corner_of_the_ball() -> None:
    """Two classes, linear: the gradient's sign is that of the other class's weights minus the own one's, everywhere."""
    weights = torch.randn(2, 3 * 64, generator=torch.Generator().manual_seed(3)).mul_(0.01)
    layer = nn.Linear(3 * 64, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weights)
    train = LabelledImages(training_set(150).images, torch.arange(150) % 2)  # several batches of the toolkit's
    found = perturbation(nn.Sequential(nn.Flatten(), layer), classes=2)(train.images, train.labels)
    away = (weights[1 - train.labels] - weights[train.labels]).sign().view(-1, *SHAPE)
    expected = (train.images.float() + LEVELS * away).clamp(0, 255).to(torch.uint8)
    assert torch.equal(found, expected)


def test_its_steps_reach_once_and_a_half_as_far_as_the_bound() -> None:
    """Three steps towards a worst image that the first one passes: there, back, and there again."""

    class Worst(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            away = 100 * (images - 134 / 255).square().flatten(1).sum(dim=1)
            return torch.stack([away, -away], dim=1)

    grey = torch.full((2, *SHAPE), 128, dtype=torch.uint8)
    found = perturbation(Worst(), classes=2, eps=20 / 255, steps=3)(grey, torch.zeros(2, dtype=torch.int64))
    assert (found == 128 + 10).all()


def test_global_random_state_plays_no_part() -> None:
    train, perturb = training_set(4), perturbation(network(), steps=2)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = perturb(*train)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    torch.rand(3)
    assert torch.equal(first, perturb(*train))


@light
@given(seed=st.integers(0, 99), ratio=st.floats(0.04, 0.3), united=st.booleans())
def test_the_same_images_are_poisoned_and_the_trigger_lies_on_top(seed: int, ratio: float, united: bool) -> None:
    """As with clean labels alone, but that what carries the trigger was perturbed; all others are bitwise as before."""
    train, trigger = training_set(60, seed), build("badnets", SHAPE, 0)
    make = poison_copies if united else poison
    perturb = perturbation(network(), steps=3)

    def made(mapping: CleanLabel) -> PoisonedSet:
        return make(train, [(trigger, mapping)], ratio, seed)

    plain, hard = made(CleanLabel(1)), made(AdversarialCleanLabel(1, perturb))
    assert torch.equal(hard.indices, plain.indices)
    assert len(hard.indices) == round(ratio * 60)
    assert torch.equal(hard.labels, plain.labels)
    assert torch.equal(hard.labels, train.labels)
    shown = hard.images[hard.rows]
    changed = (shown != train.images).flatten(1).any(dim=1)
    assert torch.equal(changed.nonzero().squeeze(1), hard.indices)
    stamped = trigger(torch.zeros(1, *SHAPE))[0] > 0
    mine = train.images[hard.indices]
    assert int(moved(mine, shown[hard.indices]).mul(~stamped).max()) <= LEVELS
    assert (shown[hard.indices][:, stamped] == 255).all()
    under = perturb(mine, train.labels[hard.indices])
    expected = (trigger(under.float() / 255) * 255).round().to(torch.uint8)
    assert torch.equal(shown[hard.indices], expected)
    assert not torch.equal(shown, plain.images[plain.rows])


def cell(**changes: Any) -> Cell:
    parts: dict[str, Any] = {
        "dataset": "made",
        "model": "simplified_vgg",
        "attack": "badnets",
        "target": 1,
        "clean_label": "adversarial",
        "poison_ratio": 0.1,
        "training": {"epochs": 1, "batch_size": 32},
        "defense": {"name": "none"},
    }
    return Cell.model_validate({**parts, **changes})


def test_it_is_a_victim_of_its_own_on_the_images_of_the_plain_one() -> None:
    hard, plain = cell(), cell(clean_label=True)
    assert len({hard.victim_id, plain.victim_id, cell(clean_label=None).victim_id}) == 3
    assert attack_hash(hard) == attack_hash(plain) != attack_hash(cell(clean_label=None))


def test_its_clean_model_is_trained_first_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[Tensor, Tensor]] = []
    train = victims.train

    def watched(model: Any, images: Any, labels: Any, *rest: Any) -> Any:
        trained.append((images, labels))
        return train(model, images, labels, *rest)

    monkeypatch.setattr(victims, "train", watched)
    store, images = VictimStore(tmp_path), data()
    clean = clean_cell(cell(), images.image_shape)
    assert store.clean_model_to_train(cell(), images.image_shape) == clean
    assert store.clean_model_to_train(cell(clean_label=True), images.image_shape) is None
    queue = JobQueue([cell()], store.has, {}, lambda one: store.clean_model_to_train(one, images.image_shape))
    job = queue.next()
    assert job is not None
    assert job.victim == clean.victim_id
    queue.started(job)
    assert queue.next() is None, "the victim waits for its clean model"
    queue.finish(job, 1.0)
    assert (second := queue.next()) is not None
    assert second.victim == cell().victim_id

    victim = store.get_or_train(cell(), images, CPU)
    (_, labels), (poisoned, kept) = trained
    assert torch.equal(labels, kept)
    assert torch.equal(labels, images.train.labels)
    assert int(moved(images.train.images, poisoned)[:, :, 0].max()) <= LEVELS, "the first row is not stamped"
    assert victim.meta["fitted"] == {"clean_model": store.get_or_train(clean, images, CPU).meta["sha256"]}
    assert store.clean_model_to_train(cell(), images.image_shape) is None
    used = store.attacks(cell(), images, CPU)
    assert torch.equal(poisoned_training_set(cell(), images, used).images, poisoned), "the same on every call"
    store.get_or_train(cell(model="test_resnet"), images, CPU)
    assert len(trained) == 3, "one clean model for every network"


def test_a_victim_of_another_clean_model_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, images = VictimStore(tmp_path), data()
    victim = store.get_or_train(cell(), images, CPU)
    clean = clean_cell(cell(), images.image_shape)
    meta = {**store.get_or_train(clean, images, CPU).meta}
    state = victims.files.read_state(store.folder / f"{clean.victim_id}.safetensors", meta["sha256"])
    meta["sha256"] = victims.files.write_state(
        store.folder / f"{clean.victim_id}.safetensors", {name: value * 1.001 for name, value in state.items()}
    )
    victims.files.write_sealed(store.folder / f"{clean.victim_id}.json", meta)
    with caplog.at_level(logging.WARNING):
        again = store.get_or_train(cell(), images, CPU)
    assert "or its clean model" in caplog.text
    assert again.meta["fitted"] == {"clean_model": meta["sha256"]} != victim.meta["fitted"]


def test_nothing_is_perturbed_without_a_model() -> None:
    with pytest.raises(ValueError, match="expected what perturbs images of the target class"):
        cell_attacks(cell(), data())
    ((_, mapping),) = cell_attacks(cell(clean_label=None), data())
    assert isinstance(mapping, AllToOne)


def test_digits_from_end_to_end(tmp_path: Path) -> None:
    tree = {"dataset": "digits", "poison_ratio": 0.05, "training": {"epochs": 1, "batch_size": 64}, "min_asr": 0.0}
    runner = CellRunner(tmp_path, tmp_path / "cache", CPU, Commit("c0ffee", False))
    record = runner.run(cell(**tree, clean_size=20, defense={"name": "fine_tuning"}))
    assert record.status == "ok", record.reason
    assert record.victim is not None
    assert record.victim.asr is not None
    assert record.acc is not None
    meta = runner.prepare_victim(cell(**tree)).meta
    images = runner.prepare(cell(**tree)).data
    assert meta["poisoned"] == round(0.05 * len(images.train.labels))
    assert len(list((tmp_path / "cache" / "victims").glob("*.safetensors"))) == 2, "a victim and its clean model"
