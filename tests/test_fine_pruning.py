"""Fine-Pruning: the mask against a direct zeroing, what is pruned, where, and how far."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters import models
from adapters.defenses import FinePruning, fine_pruning, tuning
from adapters.defenses.channel_mask import ChannelMask
from adapters.defenses.feature_maps import captured, check_layers, last, stages, trace
from adapters.defenses.fine_pruning import _parts, channel_activity
from adapters.errors import UserError
from adapters.protocols import DefenseContext, LabelledImages

CPU = torch.device("cpu")
IMAGE = torch.zeros(1, 3, 32, 32)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24, 3)
    ).eval()


def data(count: int = 60) -> LabelledImages:
    labels = torch.arange(count) % 3
    images = 0.2 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[torch.arange(count), labels] += 0.7
    return LabelledImages(images, labels)


def context(**changes: Any) -> DefenseContext:
    return DefenseContext(num_classes=3, device=CPU, seed=0, **changes)


@settings(max_examples=20)
@given(st.sets(st.integers(0, 127)), st.integers(0, 5))
def test_a_mask_is_the_zeroing_of_what_the_head_reads(pruned: set[int], count: int) -> None:
    torch.manual_seed(1)
    masked = models.build("simplified_vgg", 5, (3, 16, 16)).eval()
    zeroed = copy.deepcopy(masked)
    mask = torch.ones(128)
    mask[sorted(pruned)] = 0
    masked.get_submodule("features").register_forward_hook(ChannelMask(mask))
    with torch.no_grad():  # the head reads a channel at 2 x 2 places
        zeroed.classifier.weight.view(5, 128, 4)[:, sorted(pruned)] = 0  # type: ignore[union-attr]
        images = torch.rand(count, 3, 16, 16)
        torch.testing.assert_close(masked(images), zeroed(images))


def test_a_masked_channel_cannot_learn_and_survives_a_copy() -> None:
    model = network()
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1])
    model[3].register_forward_hook(ChannelMask(mask))
    copied = copy.deepcopy(model)
    copied(data().images).square().sum().backward()
    gradient = copied[0].weight.grad
    assert (gradient[mask == 0] == 0).all()
    assert (gradient[mask == 1] != 0).any()
    assert "mask" not in "".join(copied.state_dict())


def test_absolute_activity_takes_the_dormant_first() -> None:
    """Channels of outputs -1, 0.1 and 0.5: by the mean the first goes first, by the absolute value the second."""
    model, images = nn.Sequential(nn.Conv2d(1, 3, 1)), torch.rand(5, 1, 4, 4)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([-1.0, 0.1, 0.5]))
    torch.testing.assert_close(channel_activity(model, "0", images), torch.tensor([-1.0, 0.1, 0.5]))
    torch.testing.assert_close(channel_activity(model, "0", images, absolute=True), torch.tensor([1.0, 0.1, 0.5]))


@pytest.mark.parametrize("activity", ["mean", "absolute", None])
def test_the_setting_orders_the_channels(activity: Literal["mean", "absolute"] | None) -> None:
    model = network()
    with torch.no_grad():  # channel 2 is far below zero, the others at it or above
        model[1].bias.copy_(torch.tensor([3.0, 3.0, -9.0, 3.0, 0.0, 3.0]))
        model[1].weight.fill_(0.001)
    defense = FinePruning(activity=activity, layer="1", epochs=1, lr=1e-9, max_accuracy_drop=0.99)
    pruned = defense.run(model, data(), context()).details["pruned_channels"]
    assert len(pruned) == 5
    assert (2 in pruned) == (activity != "absolute")


@pytest.mark.parametrize("drop", [0.1, 0.6, 0.9])
def test_the_channels_that_cost_too_much_stay(drop: float) -> None:
    """A class is read off each channel and off nothing else: with a channel goes the accuracy on its class."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).eval()
    scale = torch.tensor([1.0, 2.0, 3.0])  # the order in which they go
    with torch.no_grad():
        model[0].weight.copy_(scale.diag().view(3, 3, 1, 1))
        model[3].weight.copy_((1 / scale).diag())
        model[0].bias.zero_()
        model[3].bias.zero_()
    defense = FinePruning(layer="0", max_accuracy_drop=drop, epochs=1, lr=1e-9, precision="float32")
    details = defense.run(model, data(), context()).details
    validation, _ = _parts(data(), 0.2, torch.Generator().manual_seed(0))
    costs = [int((validation.labels <= label).sum()) / len(validation.labels) for label in range(2)]
    lost = [cost for cost in costs if cost <= drop]
    assert details["pruned_channels"] == list(range(len(lost)))
    assert details["validation_accuracy"] == pytest.approx({"before": 1.0, "after": 1 - max(lost, default=0.0)})


def test_activity_is_the_mean_of_what_the_layer_puts_out() -> None:
    model, images = network(), torch.rand(300, 3, 8, 8)
    expected = model[:3](images).mean(dim=(0, 2, 3))
    torch.testing.assert_close(channel_activity(model, "2", images), expected)


@pytest.mark.parametrize("drop", [0.0, 0.2, 0.5])
def test_dormant_channels_go_first_and_no_more_than_the_accuracy_bears(drop: float) -> None:
    model = network()
    tuned = FinePruning(epochs=5, lr=0.05, batch_size=20, precision="float32").run(model, data(), context()).model
    result = FinePruning(max_accuracy_drop=drop, epochs=1, lr=1e-9, precision="float32").run(tuned, data(), context())
    details = result.details
    accuracy = details["validation_accuracy"]
    assert accuracy["before"] - accuracy["after"] <= drop
    assert details["pruned"] == len(details["pruned_channels"]) <= 5
    generator = torch.Generator().manual_seed(0)
    validation, _ = _parts(data(), 0.2, generator)
    activity = channel_activity(tuned, details["layer"], validation.images)
    assert set(details["pruned_channels"]) == set(activity.argsort(stable=True)[: details["pruned"]].tolist())
    if details["pruned"] < 5:  # one more would have cost too much
        more = torch.ones(6)
        more[activity.argsort(stable=True)[: details["pruned"] + 1]] = 0
        tuned.get_submodule(details["layer"]).register_forward_hook(ChannelMask(more))
        right = (tuned(validation.images).argmax(dim=1) == validation.labels).float().mean()
        assert accuracy["before"] - float(right) > drop


def test_validation_and_tuning_share_no_image() -> None:
    images = torch.arange(50).float()[:, None, None, None]
    one, other = _parts(LabelledImages(images, torch.arange(50)), 0.2, torch.Generator().manual_seed(0))
    assert (len(one.labels), len(other.labels)) == (10, 40)
    assert torch.equal(torch.cat([one.labels, other.labels]).sort().values, torch.arange(50))


def test_a_late_start_returns_the_unpruned_network() -> None:
    result = FinePruning().run(network(), data(), context(deadline=0.0))
    assert (result.status, result.details["pruned"]) == ("timeout", 0)


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"^cell\.defense\.layer: unknown module 'layer4'; expected one of the network"):
        FinePruning(layer="layer4").run(network(), data(), context())


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3]


def test_a_network_without_feature_maps_is_told_apart() -> None:
    with pytest.raises(UserError, match=r"^cell\.defense\.layer: found none, and the network has no feature map"):
        last(nn.Sequential(Flat()), IMAGE)
    with pytest.raises(UserError, match=r"^cell\.defense\.layers: found none"):
        stages(nn.Sequential(Flat()), IMAGE)


@pytest.mark.parametrize(
    ("name", "channels", "named"),
    [
        ("simplified_vgg", 128, ("features.5", "features.13", "features.21")),
        ("resnet18", 512, ("layer2", "layer3", "layer4")),
        ("densenet121", 1024, ("features.denseblock2", "features.denseblock3", "features.denseblock4")),
        ("googlenet", 1024, ("inception3b", "inception4e", "inception5b")),
        ("mobilenetv3_small_050", None, None),
        ("convnext_atto", 320, ("stages.1", "stages.2", "stages.3")),
    ],
)
def test_the_paper_and_timm_networks_have_a_last_map_and_three_stages(
    name: str, channels: int | None, named: tuple[str, ...] | None
) -> None:
    model = models.build(name, 4, (3, 32, 32)).eval()
    maps = {one.name: one for one in trace(model, IMAGE)}
    chosen = maps[last(model, IMAGE)]
    assert channels is None or chosen.channels == channels
    found = stages(model, IMAGE)
    assert len(found) == 3
    assert named is None or found == named
    check_layers(model, found, "layers")
    sizes = [maps[one].height for one in found]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    with captured(model, found) as outputs, torch.no_grad():
        model(IMAGE)
    assert [outputs[one].shape[2] for one in found] == sizes
    model(IMAGE)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_remains_alone_is_tuned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LabelledImages] = []

    def tuned(model: nn.Module, clean: LabelledImages, *rest: Any, **more: Any) -> Any:
        seen.append(clean)
        return tuning.tune(model, clean, *rest, **more)

    monkeypatch.setattr(fine_pruning, "tune", tuned)
    FinePruning(epochs=1, validation_share=0.2).run(network(), data(), context())
    _, rest = _parts(data(), 0.2, torch.Generator().manual_seed(0))
    assert torch.equal(seen[0].images, rest.images)


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
def test_tuning_does_what_its_settings_say(batch_norm: Literal["train", "eval"]) -> None:
    """A rate of zero moves nothing, decay shrinks what has no gradient, and statistics follow the set or stay."""
    still = network()
    nothing = tuning.Tuning(epochs=1, lr=1.0, schedule=lambda epoch: 0.0, batch_norm=batch_norm, precision="float32")
    tuning.tune(still, data(), nothing, context(), torch.Generator().manual_seed(0))
    for mine, theirs in zip(still.parameters(), network().parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(still[1].running_mean, network()[1].running_mean) == (batch_norm == "eval")
    shrunk = network()
    decay = tuning.Tuning(epochs=1, lr=0.5, weight_decay=0.1, momentum=0.0, batch_size=60, precision="float32")
    tuning.tune(
        shrunk, data(), decay, context(), torch.Generator().manual_seed(0),
        loss=lambda model, images, labels: 0.0 * model(images).sum(),
    )  # fmt: skip
    torch.testing.assert_close(shrunk[0].weight, network()[0].weight * (1 - 0.5 * 0.1))


def test_channels_are_judged_in_evaluation_mode() -> None:
    found = [
        FinePruning(epochs=1, precision="float32").run(network().train(mode), data(), context())
        for mode in (True, False)
    ]
    assert found[0].details == found[1].details
