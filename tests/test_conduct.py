"""What a trigger may do, and that one of another conduct is another trigger, whatever it is called."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_data import data
from PIL import Image
from torch import Tensor, nn

from adapters import attacks, models
from adapters.errors import UserError
from adapters.protocols import LabelledImages
from bench.cells import Cell
from bench.kept_scores import ScoreStore
from bench.scoring import Scorer
from bench.splits import split_test
from bench.triggers import cell_attacks
from bench.victims import VictimStore

CPU, IMAGES = torch.device("cpu"), data()
Made = Callable[[Tensor], Any]


class Own:
    """Somebody's trigger."""

    name = "own"

    def __init__(self, made: Made) -> None:
        self._made = made

    def __call__(self, images: Tensor) -> Any:
        return self._made(images)


def registered(monkeypatch: pytest.MonkeyPatch, made: Made) -> None:
    def factory(image_shape: tuple[int, int, int], seed: int = 0) -> Own:
        return Own(made)

    monkeypatch.setitem(attacks.TRIGGERS, "own", factory)


def in_place(images: Tensor) -> Tensor:
    images[:, :, :2] = 1.0
    return images


def cell(**changes: Any) -> Cell:
    training = {"epochs": 1, "batch_size": 32}
    parts = {
        "dataset": "made",
        "model": "tiny",
        "attack": "own",
        "target": 1,
        "poison_ratio": 0.2,
        "training": training,
    }
    return Cell.model_validate({**parts, "defense": {"name": "none"}, **changes})


WRONG: dict[str, tuple[Made, str]] = {
    "too bright": (lambda images: images + 0.6, r"returned pixels from 0\.6 to 1\.6; expected all of them in \[0, 1\]"),
    "too dark": (lambda images: images - 0.6, r"returned pixels from -0\.6 to 0\.4; expected"),
    "NaN": (lambda images: images * torch.nan, r"returned pixels from nan to nan; expected"),
    "in place": (in_place, "changed the images that it was given; expected new ones"),
    "random": (torch.rand_like, "did not do the same to the same images twice"),
    "float64": (
        lambda images: images.double(),
        r"returned torch\.float64 of shape \(8, 3, 8, 8\); expected torch\.float32",
    ),
    "size": (lambda images: images[:, :, :7], r"returned torch\.float32 of shape \(8, 3, 7, 8\); expected"),
    "nothing": (lambda images: None, "returned NoneType; expected"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_trigger_that_breaks_its_contract_is_one_line(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, words = WRONG[case]
    registered(monkeypatch, made)
    with pytest.raises(UserError, match=rf"cell\.attack: the trigger 'own' {words}") as caught:
        cell_attacks(cell(), IMAGES)
    assert "\n" not in str(caught.value)


def test_a_training_image_that_the_trigger_makes_too_bright_is_told() -> None:
    """Of the few that it is tried on none need be; 256 levels would wrap round."""
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    images[20:] = 200
    train = LabelledImages(images, torch.zeros(40, dtype=torch.int64))
    own = Own(lambda given: given + 0.6 * (given > 0.5))
    attacks.check_conduct(own, images)
    with pytest.raises(UserError, match=r"the trigger 'own' returned pixels from 0 to 1\.38"):
        attacks.poison(train, [(own, attacks.AllToOne(1))], 1.0, 0)


def test_images_of_one_name_are_scored_each_by_itself(tmp_path: Path) -> None:
    """As they were not: the second got what the first had."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    for folder, level in (("a", 255), ("b", 90)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8)).save(tmp_path / folder / "t.png")
    specs = [{"image": str(tmp_path / "a/t.png"), "mode": "blend", "alpha": alpha} for alpha in (1.0, 0.02)]
    specs.append({"image": str(tmp_path / "b/t.png"), "mode": "blend", "alpha": 1.0})
    made = [attacks.build(spec, IMAGES.image_shape, 0) for spec in specs]
    assert len({one.name for one in made}) == 1
    scorers = [Scorer(IMAGES, split_test(IMAGES, 0), [(one, attacks.AllToOne(1))], CPU) for one in made]
    store = ScoreStore(tmp_path / "scores")
    for _ in range(2):  # from nothing, and from what is kept
        for scorer in scorers:
            kept, anew = store.scores("victim", "sha", model, scorer), scorer.score(model)
            assert repr(kept) == repr(anew)
    assert len({scorer.score(model).asr for scorer in scorers}) > 1
    both = Scorer(IMAGES, split_test(IMAGES, 0), [(one, attacks.AllToOne(1)) for one in made], CPU)
    assert both.names == ("blend:t.png", "blend:t.png #2", "blend:t.png #3")


def test_a_victim_of_a_trigger_whose_code_was_changed_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(
        models.MODELS, "tiny", lambda classes, shape: nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
    )

    def patch(rows: int) -> Made:
        def made(images: Tensor) -> Tensor:
            changed = images.clone()
            changed[:, :, :rows] = 1.0
            return changed

        return made

    store = VictimStore(tmp_path)
    registered(monkeypatch, patch(2))
    first = store.get_or_train(cell(), IMAGES, CPU)
    assert store.get_or_train(cell(), IMAGES, CPU).meta == first.meta
    registered(monkeypatch, patch(3))
    with caplog.at_level(logging.WARNING):
        second = store.get_or_train(cell(), IMAGES, CPU)
    assert "its triggers do not change images as they did when it was trained" in caplog.text
    assert second.meta["sha256"] != first.meta["sha256"]
    assert store.get_or_train(cell(), IMAGES, CPU).meta == second.meta


def test_rounding_does_not_make_another_trigger() -> None:
    noted = attacks.mean_change(Own(lambda images: images * 0.5), IMAGES.test.images)
    other = attacks.mean_change(Own(lambda images: images * 0.500001), IMAGES.test.images)
    assert attacks.same_change(noted, other)
    assert not attacks.same_change(noted, noted[:-1])
    assert not attacks.same_change(noted, attacks.mean_change(Own(lambda images: images * 0.51), IMAGES.test.images))
