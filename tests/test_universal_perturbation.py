"""DeepFool against ART's, and the universal perturbation built of its steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapters.defenses import NaiveUap, naive_uap, tuning, universal_perturbation
from adapters.defenses.naive_uap import carrying
from adapters.defenses.universal_perturbation import UniversalPerturbation, deepfool
from adapters.errors import UserError
from adapters.protocols import DefenseContext, LabelledImages
from ibau_defense import L2Ball

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 5))
    return model.eval().requires_grad_(False)


def images(count: int = 12) -> Tensor:
    return 0.3 + 0.4 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def labels_of(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).argmax(dim=1)


def test_deepfool_is_arts() -> None:
    """Two implementations of one algorithm, on images far from the borders of [0, 1], at which they differ."""
    from art.attacks.evasion import DeepFool
    from art.estimators.classification import PyTorchClassifier

    model, batch = network(), images()
    ours = deepfool(model, batch, labels_of(model, batch), candidates=5)
    classifier = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(3, 8, 8), nb_classes=5, clip_values=(0, 1), device_type="cpu"
    )
    theirs = DeepFool(classifier, epsilon=0.02, nb_grads=5, verbose=False).generate(batch.numpy()) - batch.numpy()
    np.testing.assert_allclose(ours.flatten(1).norm(dim=1), np.linalg.norm(theirs.reshape(12, -1), axis=1), rtol=0.05)
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(1), torch.from_numpy(theirs).flatten(1))
    assert float(cosine.min()) > 0.99
    assert (labels_of(model, batch + ours) != labels_of(model, batch)).all()


def test_deepfool_of_a_linear_model_is_the_distance_to_the_nearest_boundary() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).requires_grad_(False)
    batch = images(6)
    logits, weight = model(batch), model[1].weight
    for image, row, step in zip(batch, logits, deepfool(model, batch, logits.argmax(dim=1)), strict=True):
        first = int(row.argmax())
        distances = [
            float((row[first] - row[other]) / (weight[first] - weight[other]).norm())
            for other in range(3)
            if other != first
        ]
        if (image + step).min() > 0 and (image + step).max() < 1:
            assert float(step.norm()) == pytest.approx(1.02 * min(distances), rel=0.01)


@pytest.mark.parametrize("images_per_step", [1, 5])
@pytest.mark.parametrize("radius", [0.2, 3.0])
def test_it_stays_in_the_ball_and_fools(radius: float, images_per_step: int) -> None:
    model, batch = network(), images(40)
    search = UniversalPerturbation(3, 0.6, 20, 5, 0.02, images_per_step)
    generator = torch.Generator().manual_seed(0)
    found = search.find(model, batch, L2Ball(radius), generator, lambda: False)
    assert float(found.delta.norm()) <= radius * (1 + 1e-6)
    moved = labels_of(model, (batch + found.delta).clamp(0, 1)) != labels_of(model, batch)
    assert found.fooling_rate == pytest.approx(float(moved.float().mean()))
    if radius > 1:
        assert found.fooling_rate >= 0.6


def test_a_search_that_is_out_of_time_ends_after_a_step() -> None:
    calls = []

    def out_of_time() -> bool:
        calls.append(1)
        return True

    search = UniversalPerturbation(100, 1.0, 5, 5, 0.02, 1)
    search.find(network(), images(40), L2Ball(1.0), torch.Generator().manual_seed(0), out_of_time)
    assert len(calls) == 2


def test_carriers_carry_and_others_do_not() -> None:
    batch, delta = torch.full((500, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 0.8)
    out = carrying(delta, 0.3, torch.Generator().manual_seed(0))(batch)
    assert set(out.unique().tolist()) == {0.5, 1.0}
    assert 0.2 < float((out[:, 0, 0, 0] == 1).float().mean()) < 0.4
    assert (carrying(delta, 1.0, torch.Generator())(batch) == 1).all()


def test_it_needs_a_radius() -> None:
    context = DefenseContext(num_classes=5, device=CPU, seed=0)
    with pytest.raises(UserError, match=r"^cell\.radius: found none; expected a number of at least 0"):
        NaiveUap().run(network(), LabelledImages(images(), torch.zeros(12, dtype=torch.int64)), context)


def test_training_on_perturbed_images_makes_the_network_harder_to_fool() -> None:
    torch.manual_seed(0)
    batch = images(90)
    labels = torch.arange(90) % 5
    batch[torch.arange(90), :, labels] += 0.25
    model = network().requires_grad_(True)
    context = DefenseContext(num_classes=5, device=CPU, seed=0, radius=1.0)
    data = LabelledImages(batch.clamp(0, 1), labels)
    seen: list[float] = []
    context = DefenseContext(
        num_classes=5, device=CPU, seed=0, radius=1.0, on_round=lambda _, info: seen.append(info["fooling_rate"])
    )
    defense = NaiveUap(rounds=6, lr=0.05, batch_size=10, images_per_step=10, carriers=0.5, precision="float32")
    result = defense.run(model, data, context)
    assert (labels_of(result.model, data.images) == labels).float().mean() > 0.9
    assert len(seen) == 6


def test_deepfool_is_asked_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def spied(model: nn.Module, moved: Tensor, labels: Tensor, *settings: Any) -> Tensor:
        seen.append((len(moved), *settings))
        return torch.zeros_like(moved)

    monkeypatch.setattr(universal_perturbation, "deepfool", spied)
    search = UniversalPerturbation(1, 1.0, 7, 4, 0.3, 2)
    search.find(network(), images(4), L2Ball(1.0), torch.Generator().manual_seed(0), lambda: False)
    assert seen == [(2, 7, 4, 0.3)] * 2


def test_it_trains_on_images_that_carry_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round by round; images and perturbation stay clear of the borders of [0, 1] here."""
    moves: list[tuple[list[float], float]] = []

    def tuned(model: nn.Module, clean: LabelledImages, *rest: Any, **more: Any) -> Any:
        added = more["change"](clean.images) - clean.images
        moves.append((added.flatten(1).norm(dim=1).tolist(), more["info"]["delta_norm"]))
        return tuning.tune(model, clean, *rest, **more)

    monkeypatch.setattr(naive_uap, "tune", tuned)
    context = DefenseContext(num_classes=5, device=CPU, seed=0, radius=0.2)
    data = LabelledImages(images(), torch.arange(12) % 5)
    NaiveUap(rounds=2, images_per_step=4, batch_size=4, precision="float32").run(network(), data, context)
    assert len(moves) == 2
    for norms, found in moves:
        assert 0 < found <= 0.2 * (1 + 1e-6)
        assert norms == pytest.approx([found] * 12, rel=1e-4)
