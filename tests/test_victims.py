"""Victims: trained once, verified on every read, rebuilt when damaged; their scores computed once."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from made_data import data
from torch import nn

from adapters import attacks, models
from adapters.errors import UserError
from adapters.protocols import ImageTensors
from bench import victim_files, victims
from bench.cells import Cell
from bench.scoring import Scorer
from bench.seeds import derive_seed
from bench.splits import split_test
from bench.triggers import cell_attacks
from bench.victims import VictimStore

CPU = torch.device("cpu")


def tiny(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * height * width, num_classes),
    )


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "tiny", tiny)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each training that was started."""
    started: list[int] = []
    original = victims.train

    def counted(*args: Any, **kwargs: Any) -> Any:
        started.append(1)
        time.sleep(0.05)  # long enough for others to arrive meanwhile
        return original(*args, **kwargs)

    monkeypatch.setattr(victims, "train", counted)
    return started


def cell(**changes: Any) -> Cell:
    parts: dict[str, Any] = {
        "dataset": "made",
        "model": "tiny",
        "attack": "badnets",
        "target": 1,
        "poison_ratio": 0.2,
        "training": {"epochs": 1, "batch_size": 32},
        "defense": {"name": "none"},
    }
    return Cell.model_validate({**parts, **changes})


def states_equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_trained_once_and_read_back_bit_by_bit(tmp_path: Path, trainings: list[int]) -> None:
    store, one = VictimStore(tmp_path), cell()
    assert not store.has(one)
    trained = store.get_or_train(one, data(), CPU)
    assert store.has(one)
    read = VictimStore(tmp_path).get_or_train(cell(defense={"name": "ibau"}, clean_size=9), data(), CPU)
    assert trainings == [1]
    assert states_equal(trained.model, read.model)
    assert read.id == trained.id == one.victim_id
    assert read.meta == trained.meta
    assert not trained.model.training
    assert not read.model.training
    assert read.seconds > 0
    assert read.meta["poisoned"] == 18
    assert read.meta["versions"]["torch"] == torch.__version__.split("+")[0] or read.meta["versions"]["torch"]
    files = {path.name for path in (tmp_path / "victims").iterdir() if path.suffix != ".lock"}
    assert files == {f"{one.victim_id}.safetensors", f"{one.victim_id}.json"}, "no part files, no holder's note"


def test_other_cells_are_other_victims(tmp_path: Path, trainings: list[int]) -> None:
    store = VictimStore(tmp_path)
    first = store.get_or_train(cell(), data(), CPU)
    for changes in ({"seed": 1}, {"target": 2}, {"poison_ratio": 0.3}, {"attack": "blend"}):
        other = store.get_or_train(cell(**changes), data(), CPU)
        assert other.id != first.id
        assert not states_equal(other.model, first.model)
    assert len(trainings) == 5


def test_cells_that_differ_in_the_attack_start_from_the_same_weights() -> None:
    images = data()
    first, other, later = (
        victims.new_model(one, images) for one in (cell(), cell(attack="blend", poison_ratio=0.1), cell(seed=1))
    )
    assert states_equal(first, other)
    assert not states_equal(first, later)


def test_weights_order_and_poisoning_are_drawn_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def derive(*parts: object) -> int:
        drawn.append(derive_seed(*parts))
        return drawn[-1]

    monkeypatch.setattr(victims, "derive_seed", derive)
    VictimStore(tmp_path).get_or_train(cell(), data(), CPU)
    assert len(set(drawn)) == len(drawn) == 3


def test_the_network_and_the_ratio_do_not_change_which_images_are_poisoned_first() -> None:
    images = data()

    def poisoned(**changes: Any) -> set[int]:
        one = cell(**changes)
        return set(victims.poisoned_training_set(one, images, cell_attacks(one, images)).indices.tolist())

    many = poisoned()
    assert poisoned(model="resnet18", training={"epochs": 2}) == many
    assert poisoned(poison_ratio=0.1) < many
    assert poisoned(seed=1) != many


@pytest.mark.parametrize(("mix", "examples"), [(None, 90), ("disjoint", 90), ("united", 180)])
def test_several_triggers_share_one_set_unless_their_copies_are_united(mix: str | None, examples: int) -> None:
    rows = [{"attack": "badnets", "target": 0}, {"attack": "blend", "target": 2}]
    images, one = data(), cell(attack=rows, target=None, mix=mix)
    poisoned = victims.poisoned_training_set(one, images, cell_attacks(one, images))
    assert (len(poisoned.labels), len(poisoned.indices)) == (examples, 36)


def test_many_at_once_train_once(tmp_path: Path, trainings: list[int]) -> None:
    def get(_: int) -> nn.Module:
        return VictimStore(tmp_path).get_or_train(cell(), data(), CPU).model

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(get, range(4)))
    assert trainings == [1]
    assert all(states_equal(got[0], other) for other in got)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated tensors": ("safetensors", truncate),
    "flipped bit": ("safetensors", flip_a_bit),
    "empty tensors": ("safetensors", lambda path: path.write_bytes(b"")),
    "no tensors": ("safetensors", lambda path: path.unlink()),
    "truncated metadata": ("json", truncate),
    "other JSON": ("json", lambda path: path.write_text("[1]")),
    "another's metadata": ("json", lambda path: path.write_text(path.read_text().replace('"id": "', '"id": "x'))),
    "no metadata": ("json", lambda path: path.unlink()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_noticed_and_rebuilt(
    tmp_path: Path, trainings: list[int], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    store = VictimStore(tmp_path)
    first = store.get_or_train(cell(), data(), CPU)
    suffix, damage = DAMAGES[kind]
    damage(tmp_path / "victims" / f"{first.id}.{suffix}")
    with caplog.at_level(logging.WARNING):
        again = store.get_or_train(cell(), data(), CPU)
    assert len(trainings) == 2
    assert states_equal(first.model, again.model), "training is a function of the cell"
    if not kind.startswith("no "):
        assert f"victim {first.id} is rebuilt" in caplog.text
    assert len(trainings) == 2
    store.get_or_train(cell(), data(), CPU)
    assert len(trainings) == 2


@pytest.mark.parametrize("suffix", ["json", "scores.json"])
def test_a_bit_flipped_inside_a_figure_is_noticed(tmp_path: Path, trainings: list[int], suffix: str) -> None:
    """It leaves JSON of the same keys, which says something else."""
    store, images = VictimStore(tmp_path), data()
    first = store.get_or_train(cell(), images, CPU)
    expected = store.scores(first, scorer(cell(), images))
    path = tmp_path / "victims" / f"{first.id}.{suffix}"
    text = path.read_text()
    place = text.index('"bits": "') + 9 if suffix == "scores.json" else text.index('"poisoned": ') + 12
    path.write_text(text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :])
    again = store.get_or_train(cell(), images, CPU)
    assert again.meta["poisoned"] == first.meta["poisoned"]
    assert store.scores(again, scorer(cell(), images)) == expected
    assert len(trainings) == (2 if suffix == "json" else 1)


def test_metadata_from_before_there_were_checksums_are_taken(tmp_path: Path, trainings: list[int]) -> None:
    store = VictimStore(tmp_path)
    path = tmp_path / "victims" / f"{store.get_or_train(cell(), data(), CPU).id}.json"
    victim_files.write_json(path, victim_files.read_sealed(path))
    store.get_or_train(cell(), data(), CPU)
    assert trainings == [1]


def test_foreign_tensors_are_rebuilt(tmp_path: Path, trainings: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """A file with a matching checksum, but another network's tensors."""
    store = VictimStore(tmp_path)
    first = store.get_or_train(cell(), data(), CPU)
    sha256 = victim_files.write_state(tmp_path / "victims" / f"{first.id}.safetensors", {"x": torch.zeros(2)})
    path = tmp_path / "victims" / f"{first.id}.json"
    victim_files.write_sealed(path, {**victim_files.read_sealed(path), "sha256": sha256})
    store.get_or_train(cell(), data(), CPU)
    assert len(trainings) == 2
    assert "its tensors do not fit 'tiny'" in caplog.text


def test_the_files_of_another_victim_under_its_name_are_noticed(
    tmp_path: Path, trainings: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Sound ones, of the same images and network: renamed, or copied from elsewhere."""
    store = VictimStore(tmp_path)
    first, other = (store.get_or_train(one, data(), CPU) for one in (cell(), cell(target=2)))
    for suffix in ("safetensors", "json"):
        shutil.copy(tmp_path / "victims" / f"{other.id}.{suffix}", tmp_path / "victims" / f"{first.id}.{suffix}")
    again = store.get_or_train(cell(), data(), CPU)
    assert "its metadata belong to another victim" in caplog.text
    assert states_equal(again.model, first.model)
    assert len(trainings) == 3


def test_other_images_under_the_same_name_are_noticed(
    tmp_path: Path, trainings: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    store = VictimStore(tmp_path)
    store.get_or_train(cell(), data(), CPU)
    store.get_or_train(cell(), data(seed=1), CPU)
    assert len(trainings) == 2
    assert "the images of 'made' are not those it was trained on" in caplog.text


def test_failed_training_leaves_nothing_and_frees_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, original = VictimStore(tmp_path), victims.train

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(victims, "train", fail)
    with pytest.raises(KeyboardInterrupt):
        store.get_or_train(cell(), data(), CPU)
    assert not store.has(cell())
    monkeypatch.setattr(victims, "train", original)
    store.get_or_train(cell(), data(), CPU)


def test_a_wait_names_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(victim_files, "WAIT_LOG_SECONDS", 0.2)
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with victim_files.locked(tmp_path / "a.lock", "first"):
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    threading.Timer(0.7, done.set).start()
    with caplog.at_level(logging.INFO), victim_files.locked(tmp_path / "a.lock", "second"):
        assert done.is_set()
    thread.join()
    assert "second: waiting for process" in caplog.text


def test_others_see_how_far_a_training_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, original, seen = VictimStore(tmp_path), victims.train, []
    one = cell(training={"epochs": 3, "batch_size": 32})

    def watched(*args: Any) -> Any:
        *first, on_epoch, rows = args

        def watch(epoch: int, epochs: int) -> None:
            on_epoch(epoch, epochs)
            seen.append((VictimStore(tmp_path).epochs(one), store.epochs(cell())))

        seen.append((store.epochs(one), None))
        return original(*first, watch, rows)

    monkeypatch.setattr(victims, "train", watched)
    store.get_or_train(one, data(), CPU)
    assert seen == [(None, None), ((1, 3), None), ((2, 3), None), ((3, 3), None)]
    assert store.epochs(one) is None


def scorer(one: Cell, images: ImageTensors, seed: int = 0) -> Scorer:
    return Scorer(images, split_test(images, seed), cell_attacks(one, images), CPU)


def test_scores_are_computed_once_for_each_image(tmp_path: Path, scored: list[int]) -> None:
    store, images = VictimStore(tmp_path), data()
    victim = store.get_or_train(cell(), images, CPU)
    expected = scorer(cell(), images).score(victim.model)
    scored.clear()
    for _ in range(3):
        assert store.scores(victim, scorer(cell(), images)) == expected
    assert len(scored) == len(expected.outcomes.correct)
    store.scores(victim, scorer(cell(), images, seed=1))
    assert len(scored) == len(set(scored)) > len(expected.outcomes.correct)
    for _ in range(2):
        assert store.scores(victim, scorer(cell(), images)) == expected
    assert len(scored) == len(set(scored))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"sha256": "other", "outcomes": {}}', "damaged bits"])
def test_damaged_scores_are_computed_again(tmp_path: Path, content: str) -> None:
    store, images = VictimStore(tmp_path), data()
    victim = store.get_or_train(cell(), images, CPU)
    expected = store.scores(victim, scorer(cell(), images))
    path = tmp_path / "victims" / f"{victim.id}.scores.json"
    kept = path.read_text()
    path.write_text(kept.replace('"bits": "', '"bits": "!') if content == "damaged bits" else content)
    assert store.scores(victim, scorer(cell(), images)) == expected
    assert json.loads(path.read_text()) == json.loads(kept)


def test_checkpoint_victims_are_loaded(tmp_path: Path, trainings: list[int]) -> None:
    images, source = data(), tiny(3, (3, 8, 8))
    torch.save({"net": source.state_dict()}, tmp_path / "theirs.pth")
    victim_part = {"checkpoint": str(tmp_path / "theirs.pth"), "trigger": "badnets", "target": 2}
    one = cell(attack=None, target=None, poison_ratio=None, training=None, victim=victim_part)
    store = VictimStore(tmp_path)
    assert store.has(one)
    victim = store.get_or_train(one, images, CPU)
    assert trainings == []
    assert states_equal(victim.model, source)
    assert victim.seconds is None
    expected = scorer(one, images).score(source)
    assert store.scores(victim, scorer(one, images)) == expected == store.scores(victim, scorer(one, images))


def test_a_checkpoint_is_one_model_in_every_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: list[int]
) -> None:
    """Its scoring sets overlap. Another network with the same tensors is another model."""
    monkeypatch.setitem(models.MODELS, "another", tiny)
    torch.save({"net": tiny(3, (3, 8, 8)).state_dict()}, tmp_path / "theirs.pth")
    victim_part = {"checkpoint": str(tmp_path / "theirs.pth"), "trigger": "badnets", "target": 2}
    images, taken = data(), []
    for model, seed in [("tiny", 0), ("tiny", 1), ("another", 1), ("tiny", 2)]:
        one = cell(
            model=model, seed=seed, attack=None, target=None, poison_ratio=None, training=None, victim=victim_part
        )
        victim, judge = VictimStore(tmp_path).get_or_train(one, images, CPU), scorer(one, images, seed)
        expected = judge.score(victim.model)
        scored.clear()
        assert VictimStore(tmp_path).scores(victim, judge) == expected
        taken.append(set(scored))
    first, second, other, third = taken
    assert not first & second
    assert not (first | second) & third
    assert other == set(split_test(images, 1).scoring_indices.tolist())


def test_a_checkpoint_that_changed_since_the_sweep_was_planned_is_refused(tmp_path: Path) -> None:
    """The record would name one file and hold the figures of another."""
    path = tmp_path / "theirs.pth"
    torch.save({"net": tiny(3, (3, 8, 8)).state_dict()}, path)
    victim_part = {"checkpoint": str(path), "trigger": "badnets", "target": 2, "digest": attacks.digest([path])}
    one = cell(attack=None, target=None, poison_ratio=None, training=None, victim=victim_part)
    store = VictimStore(tmp_path)
    assert store.get_or_train(one, data(), CPU).meta["sha256"] == victim_part["digest"]
    torch.save({"net": tiny(3, (3, 8, 8)).state_dict()}, path)
    with pytest.raises(UserError, match="expected a file that stays as it is"):
        store.get_or_train(one, data(), CPU)


@pytest.mark.parametrize("broken", ["lock", "write"])
def test_scores_that_cannot_be_kept_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """On a full disk, or in a cache that may only be read."""
    store, images = VictimStore(tmp_path), data()
    victim = store.get_or_train(cell(), images, CPU)

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(victim_files, "locked" if broken == "lock" else "write_atomically", refuse)
    with caplog.at_level(logging.WARNING):
        assert store.scores(victim, scorer(cell(), images)) == scorer(cell(), images).score(victim.model)
    assert "are not kept: [Errno 30] Read-only file system" in caplog.text


def test_attacks_of_cells(tmp_path: Path) -> None:
    images = data()
    several = cell(attack=[{"attack": "badnets", "target": 0}, {"attack": "blend", "target": 2}], target=None)
    assert [trigger.name for trigger, _ in cell_attacks(several, images)] == ["badnets", "blend"]
    assert VictimStore(tmp_path).get_or_train(several, images, CPU).meta["poisoned"] == 36
    with pytest.raises(UserError, match=r"cell.target: found 3; expected a label from 0 to 2"):
        cell_attacks(cell(target=3), images)
    wrong = cell(attack=[{"attack": "badnets", "target": 0}, {"attack": "blend", "target": 9}], target=None)
    with pytest.raises(UserError, match=r"cell.attack\[1\].target: found 9"):
        cell_attacks(wrong, images)
    twice = cell(attack=[{"attack": "badnets", "target": 0}, {"attack": "badnets", "target": 1}], target=None)
    with pytest.raises(UserError, match=r"cell.attack\[1\].attack: 'badnets' is listed twice"):
        cell_attacks(twice, images)
    with pytest.raises(UserError, match=r"cell.poison_ratio: found 0.9, 81 of 90"):
        VictimStore(tmp_path).get_or_train(cell(poison_ratio=0.9), images, CPU)
