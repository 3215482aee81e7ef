"""DP-SGD: ε against opacus' accountant, the step against its definition, GroupNorm, and which networks work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapters import models
from adapters.defenses import DpSgd
from adapters.defenses.dp_sgd import _training
from adapters.defenses.group_norm import replace_batch_norm
from adapters.defenses.sample_gradients import MODES, Mode, Way, choose_way
from adapters.errors import UserError
from adapters.protocols import LabelledImages, PassCounter, TrainingContext, TrainingData

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def data(count: int = 120) -> TrainingData:
    labels = torch.arange(count) % 3
    images = torch.randint(0, 60, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[torch.arange(count), labels] += 150
    return TrainingData(images, labels, torch.arange(count))


def context(**changes: Any) -> TrainingContext:
    settings: dict[str, Any] = {
        "num_classes": 3,
        "device": CPU,
        "seed": 0,
        "training_data": data(),
        "untrained": network,
    }
    return TrainingContext(**{**settings, **changes})


def nothing() -> LabelledImages:
    return LabelledImages(torch.empty(0, 3, 8, 8), torch.empty(0, dtype=torch.int64))


def test_epsilon_is_the_accountants() -> None:
    from opacus.accountants.analysis import rdp

    result = DpSgd(epochs=3, batch_size=30, noise_multiplier=1.1).run(network(), nothing(), context())
    orders = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))
    steps = 3 * 4
    assert result.details["steps"] == steps
    spent = rdp.compute_rdp(q=30 / 120, noise_multiplier=1.1, steps=steps, orders=orders)
    assert result.details["epsilon"] == pytest.approx(rdp.get_privacy_spent(orders=orders, rdp=spent, delta=1e-5)[0])


def test_more_noise_is_more_private_and_more_steps_are_less() -> None:
    def epsilon(**settings: Any) -> float:
        return float(DpSgd(batch_size=60, **settings).run(network(), nothing(), context()).details["epsilon"])

    assert epsilon(epochs=1, noise_multiplier=4.0) < epsilon(epochs=1) < epsilon(epochs=2)


def moved(bound: float, chosen: Tensor, way: Way) -> tuple[nn.Module, list[Tensor]]:
    """The untrained network, and how far one step without noise on ``chosen``, a batch of 100 on average, moves it."""
    defense = DpSgd(noise_multiplier=1e-12, max_grad_norm=bound, batch_size=100, lr=1.0, momentum=0.0)
    plain = replace_batch_norm(network())
    training = _training(defense, plain, way, 120, context())
    training.network.train()
    training.step(data(), chosen)
    after = training.plain().parameters()
    return plain, [(one - other).detach() for one, other in zip(plain.parameters(), after, strict=True)]


@pytest.mark.parametrize("bound", [0.05, 100.0])
def test_one_image_moves_the_network_by_the_bound_at_most_in_bfloat16_too(bound: float) -> None:
    reduced, full = (
        nn.utils.parameters_to_vector(moved(bound, torch.tensor([7]), Way("hooks", precision))[1]) * 100
        for precision in ("bfloat16", "float32")
    )
    assert float(reduced.norm()) <= bound * (1 + 1e-4)  # the difference of two parameters of size one, in float32
    assert float(reduced.norm()) == pytest.approx(float(full.norm()), rel=0.05)  # a factor has 8 bits
    assert float(nn.functional.cosine_similarity(reduced, full, dim=0)) > 0.99


@pytest.mark.parametrize("mode", MODES)
def test_a_step_without_noise_is_the_mean_of_clipped_gradients(mode: Mode) -> None:
    """Image by image, with plain autograd; more images than are held at once."""
    bound, count = 0.05, 100
    plain, moves = moved(bound, torch.arange(count), Way(mode, "float32"))
    expected = [torch.zeros_like(one) for one in plain.parameters()]
    for image, label in zip(data().images[:count].float() / 255, data().labels[:count], strict=True):
        loss = nn.functional.cross_entropy(plain(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        norm = torch.cat([one.flatten() for one in gradients]).norm()
        for total, one in zip(expected, gradients, strict=True):
            total += one * min(1.0, bound / float(norm + 1e-6))
    for move, total in zip(moves, expected, strict=True):
        np.testing.assert_allclose(move.numpy(), total.numpy() / 100, atol=2e-6)


def test_momentum_carries_a_step_on() -> None:
    defense = DpSgd(noise_multiplier=1e-12, batch_size=100, lr=1.0, momentum=0.75)
    training = _training(defense, replace_batch_norm(network()), Way("hooks", "float32"), 120, context())
    training.network.train()
    points = [nn.utils.parameters_to_vector(training.plain().parameters()).detach()]
    for chosen in (torch.arange(100), torch.empty(0, dtype=torch.int64)):  # the second without a gradient
        training.step(data(), chosen)
        points.append(nn.utils.parameters_to_vector(training.plain().parameters()).detach())
    first, second = points[1] - points[0], points[2] - points[1]
    assert first.norm() > 1e-3
    torch.testing.assert_close(second, 0.75 * first, rtol=1e-3, atol=1e-6)


def test_examples_that_share_an_image_train_like_copies_of_it() -> None:
    images, labels, _ = data()
    rows = torch.randint(0, 120, (300,), generator=torch.Generator().manual_seed(3))
    shared = TrainingData(images, labels[rows], rows)
    copied = TrainingData(images[rows], labels[rows], torch.arange(300))
    one, other = (
        DpSgd(epochs=2, batch_size=100).run(network(), nothing(), context(training_data=given))
        for given in (shared, copied)
    )
    assert one.details == other.details
    assert one.details["steps"] == 2 * 3
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_noise_has_the_size_that_was_asked_for() -> None:
    defense = DpSgd(noise_multiplier=3.0, max_grad_norm=2.0, batch_size=50, lr=1.0, momentum=0.0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 30))
    training = _training(defense, plain, Way("hooks", "float32"), 120, context())
    training.network.train()
    training.step(data(), torch.empty(0, dtype=torch.int64))  # an empty sample: noise alone, and it counts
    before, after = (nn.utils.parameters_to_vector(one.parameters()).detach() for one in (plain, training.plain()))
    assert float((after - before).std()) == pytest.approx(3.0 * 2.0 / 50, rel=0.05)  # 5,790 draws: 1 % standard error
    assert training.accountant.history[0][2] == 1


def test_it_learns_and_counts_every_image() -> None:
    counter = PassCounter()

    def untrained() -> nn.Module:
        model = network()
        counter.attach(model)
        return model

    defense = DpSgd(epochs=12, batch_size=30, noise_multiplier=0.3, lr=0.5)
    result = defense.run(network(), nothing(), context(untrained=untrained, passes=counter))
    guesses = result.model(data().images.float() / 255).argmax(dim=1)
    assert (guesses == data().labels).float().mean() > 0.8
    assert counter.backward == counter.forward - 120  # the line above; what it was trained on, both ways
    drawn = counter.backward - 2  # two images tried the mode out
    assert abs(drawn - 12 * 120) < 200


def test_the_modes_agree() -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 40, "precision": "float32"}
    defenses = [DpSgd(**settings, grad_sample="hooks"), DpSgd(**settings, grad_sample="ew")]
    found = [defense.run(network(), nothing(), context()).model for defense in defenses]
    for one, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("simplified_vgg", "hooks"), ("googlenet", "hooks"), ("vgg11", "hooks"), ("densenet121", "hooks"),
        ("convnext_atto", "hooks"), ("vit_tiny_patch16_224", "hooks"), ("resnet18", "ew"),
        ("mobilenetv3_small_050", None),
    ],
)  # fmt: skip
def test_the_first_way_that_works_is_taken(name: str, mode: Mode | None) -> None:
    model = replace_batch_norm(models.build(name, 4, (3, 32, 32)))
    assert not any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in model.modules())
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    found = choose_way(model, images, labels, "auto", "auto")
    assert mode is None or found == Way(mode, "bfloat16" if mode == "hooks" else "float32")
    assert all(one.grad is None and not hasattr(one, "grad_sample") for one in model.parameters())


@pytest.mark.parametrize(
    ("mode", "precision", "message"),
    [
        ("hooks", "auto", r"found 'hooks' with precision 'auto', which does not .*; expected auto$"),
        ("auto", "bfloat16", r"found 'auto' with precision 'bfloat16', which does not .*; expected auto$"),
    ],
)
def test_a_way_that_does_not_work_is_told_with_its_reason(mode: str, precision: str, message: str) -> None:
    model = replace_batch_norm(models.build("resnet18", 4, (3, 32, 32)))
    with pytest.raises(UserError, match=r"^cell\.defense\.grad_sample: " + message):
        choose_way(model, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), mode, precision)


@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (64, 16), (128, 32), (512, 32), (48, 8), (7, 1), (96, 16)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    norm = replace_batch_norm(nn.Sequential(nn.BatchNorm2d(channels, eps=0.01)))[0]  # type: ignore[index]
    assert (norm.num_groups, norm.num_channels, norm.eps) == (groups, channels, 0.01)


def test_a_norm_with_an_activation_keeps_it() -> None:
    from timm.layers import BatchNormAct2d

    norm = replace_batch_norm(BatchNormAct2d(8))
    images = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(norm(images), torch.relu(nn.GroupNorm(2, 8)(images)))


def test_epsilon_is_told_at_the_delta_that_was_asked_for() -> None:
    loose, tight = (
        DpSgd(epochs=1, batch_size=60, delta=delta).run(network(), nothing(), context()).details
        for delta in (1e-2, 1e-6)
    )
    assert (loose["delta"], tight["delta"]) == (1e-2, 1e-6)
    assert loose["epsilon"] < tight["epsilon"]
