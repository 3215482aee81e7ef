"""Evasion accuracy: a linear model has it in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.evasion import IMAGES, evasion_accuracy


def half_plane() -> nn.Module:
    """Class 1 where the sum of pixels exceeds half their number: the ℓ2 distance to the boundary is known.

    Logits are small enough for the softmax not to saturate: a gradient of zero would hide the boundary.
    """
    linear = nn.Linear(48, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([-torch.ones(48), torch.ones(48)]) / 16)
        linear.bias.copy_(torch.tensor([24.0, -24.0]) / 16)
    return nn.Sequential(nn.Flatten(), linear)


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform greys, away from the borders of [0, 1], and the labels the model gives them."""
    levels = torch.linspace(64, 191, count).round()
    return levels[:, None, None, None].expand(-1, 3, 4, 4).to(torch.uint8), (levels > 127.5).long()


@pytest.mark.parametrize("radius", [0.0, 0.3, 1.0])
def test_an_image_is_lost_when_the_boundary_is_within_the_radius(radius: float) -> None:
    batch, labels = images(100)
    distance = (batch.float().mean(dim=(1, 2, 3)) / 255 - 0.5).abs() * 48**0.5
    found = evasion_accuracy(half_plane(), batch, labels, radius, seed=0)
    assert found.value == pytest.approx(
        float((distance > radius).float().mean()), abs=0.03
    )  # neighbours of the boundary
    assert found.interval[0] <= found.value <= found.interval[1]


def test_a_wrong_label_counts_as_lost_and_the_global_generator_is_left_alone() -> None:
    batch, labels = images(20)
    model = half_plane()
    state = torch.random.get_rng_state()
    assert evasion_accuracy(model, batch, 1 - labels, 0.1, seed=0).value == 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_of_many_images_a_fixed_number_is_drawn() -> None:
    batch, labels = images(2 * IMAGES)
    seen = []
    model = half_plane()
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    first = evasion_accuracy(model, batch, labels, 0.3, seed=1)
    assert sum(seen) % IMAGES == 0
    assert evasion_accuracy(model, batch, labels, 0.3, seed=1) == first


def test_the_share_is_one_of_the_images_drawn() -> None:
    batch, labels = images(2 * IMAGES)
    assert evasion_accuracy(half_plane(), batch, 1 - labels, 0.1, seed=1).value == 0
