"""The ascent from many starts: regions, the ball, and a planted trigger that one ascent from zero misses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ibau_defense import BALLS, IBAU, L2Ball, MultiStart, Network, UniversalLoss, ascend_from_many
from ibau_defense.recipes import FAST
from ibau_defense.starts import _average, _regions


def images_of(count: int, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator), torch.arange(count) % 5


class Planted(nn.Module):
    """Five classes by the mean of five columns; a bright corner patch of 2×2 pixels outweighs them all."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.Linear(8, 5)
        self.patch = nn.Linear(12, 1)
        with torch.no_grad():
            self.columns.weight.copy_(torch.eye(5, 8) * 4)
            self.columns.bias.zero_()
            self.patch.weight.fill_(1.0)
            self.patch.bias.fill_(-10.0)

    def forward(self, images: Tensor) -> Tensor:
        plain: Tensor = self.columns(images.mean(dim=(1, 2)))
        lit = self.patch(images[..., 6:, 6:].flatten(1)).clamp(min=0) * 20
        return torch.cat([plain[:, :4], plain[:, 4:] + lit], dim=1)


def bank(settings: MultiStart, radius: float = 10.0, ball: str = "l2", micro_batch: int | None = None) -> Tensor:
    images, labels = images_of(64)
    images, network = images.double(), Network(Planted().double())
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(images), (count,), generator=generator)
        return images[index], labels[index]

    found = ascend_from_many(
        network,
        draw,
        images.shape[1:],
        network.theta,
        BALLS[ball](radius),
        settings,
        generator,
        micro_batch=micro_batch,
    )
    assert found.harm is not None
    assert found.harm.shape == (settings.count,) == found.delta.shape[:1]
    return found.delta


@pytest.mark.parametrize("size", [8, 12, 17])
def test_the_regions_tile_the_image_twice(size: int) -> None:
    masks, rows, columns = _regions(MultiStart(tiles=3, whole=2), torch.Size((3, size, size + 1)), torch.Generator())
    assert masks.shape == (20, 1, size, size + 1)
    for part in (masks[:9], masks[9:18]):
        assert torch.equal(part.sum(dim=0), torch.ones(1, size, size + 1, dtype=torch.long))
    assert bool(masks[18:].all())
    assert torch.equal(rows[:9], torch.eye(size).expand(9, -1, -1))
    torch.testing.assert_close(columns.sum(dim=2), torch.ones(20, size + 1))


def test_a_cell_is_replaced_by_its_mean() -> None:
    line = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    torch.testing.assert_close(_average(5, 2, 0) @ line, torch.tensor([1.5, 1.5, 3.5, 3.5, 5.0]))
    torch.testing.assert_close(_average(5, 2, 1) @ line, torch.tensor([1.0, 2.5, 2.5, 4.5, 4.5]))


@pytest.mark.parametrize("ball", ["l2", "linf", "l1"])
@pytest.mark.parametrize("radius", [0.0, 0.5, 10.0])
def test_every_delta_is_in_the_ball(ball: str, radius: float) -> None:
    for delta in bank(MultiStart(tiles=2), radius, ball):
        assert BALLS[ball](radius).contains(delta)


def test_micro_batches_do_not_change_the_bank() -> None:
    settings = MultiStart(tiles=2, images=2)
    torch.testing.assert_close(bank(settings), bank(settings, micro_batch=3))


def test_some_start_finds_the_planted_patch() -> None:
    images, _ = images_of(64, seed=1)
    deltas = bank(MultiStart(tiles=4, steps=6, enough=50.0))
    with torch.no_grad():
        hits = torch.stack(
            [(Planted()((images + one.float()).clamp(0, 1)).argmax(1) == 4).float().mean() for one in deltas]
        )
    assert float(hits.max()) > 0.95
    assert float((Planted()(images).argmax(1) == 4).float().mean()) < 0.4


def test_a_start_that_is_harmful_enough_stands_still() -> None:
    assert not bank(MultiStart(enough=1e-9)).any()


def test_each_image_carries_its_own_delta() -> None:
    images, labels = images_of(6)
    deltas = torch.linspace(-0.5, 0.5, 3).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    which = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = UniversalLoss(Network(Planted()), images, labels, clip=True, assignment=which)
    torch.testing.assert_close(loss.perturb(deltas), (images + deltas[which]).clamp(0, 1))
    whole = loss(deltas, loss.network.theta)
    parts = [replace(loss, micro_batch=4).parts()[i](deltas, loss.network.theta) for i in range(2)]
    torch.testing.assert_close(sum(parts), whole)


def test_the_implicit_term_is_taken_over_the_whole_bank() -> None:
    images, labels = images_of(60)
    recipe = replace(FAST, implicit=True, rounds=1, outer_steps=2, autocast=False)
    report = IBAU(L2Ball(2.0), recipe).unlearn(Planted(), images, labels).rounds[0]
    assert report.implicit_norm > 0
    assert report.delta_norm <= 2.0 * (1 + 1e-6)


def test_a_bank_of_no_starts_is_refused() -> None:
    with pytest.raises(ValueError, match="tiles"):
        MultiStart(tiles=0)


def test_the_outer_rate_and_the_share_of_carriers_follow_their_schedules() -> None:
    assert FAST.rate(0.0) == pytest.approx(FAST.outer_lr)
    assert FAST.rate(0.5) == pytest.approx(FAST.outer_lr / 2)
    assert FAST.carried(100, 0.0) == 80
    assert FAST.carried(100, 0.5) == 45
    assert replace(FAST, schedule="constant").rate(0.9) == FAST.outer_lr
