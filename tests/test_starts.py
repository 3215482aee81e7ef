"""The ascent from many starts: regions, the ball, and a planted trigger that one ascent from zero misses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ibau_defense import BALLS, IBAU, L2Ball, MultiStart, Network, UniversalLoss, ascend_from_many, unlearning
from ibau_defense.ascent import Ascent, AscentResult, ascend
from ibau_defense.guard import GuardSettings, hold_back
from ibau_defense.recipes import FAST, Sharp
from ibau_defense.starts import Search, Window, _average, _regions, near, survey_windows


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
            self.patch.bias.fill_(-7.0)

    def forward(self, images: Tensor) -> Tensor:
        plain: Tensor = self.columns(images.mean(dim=(1, 2)))
        lit = self.patch(images[..., 6:, 6:].flatten(1)).clamp(min=0) * 20
        return torch.cat([plain[:, :4], plain[:, 4:] + lit], dim=1)


def bank(settings: MultiStart, radius: float = 10.0, ball: str = "l2", **options: Any) -> AscentResult:
    images, labels = images_of(64)
    images, network = images.double(), Network(Planted().double())
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(images), (count,), generator=generator)
        return images[index], labels[index]

    windows = survey_windows(settings, images.shape[1:])
    found = ascend_from_many(
        network, draw, images.shape[1:], network.theta, BALLS[ball](radius), settings, windows, **options
    )
    assert found.harm is not None
    assert found.harm.shape == (len(windows),) == found.delta.shape[:1]
    return found


@given(st.integers(4, 40), st.integers(4, 40), st.floats(0.05, 1.0), st.integers(0, 3))
def test_a_survey_covers_every_patch_of_half_a_windows_side(height: int, width: int, side: float, whole: int) -> None:
    settings = MultiStart(side=side, whole=whole)
    windows = survey_windows(settings, torch.Size((3, height, width)))
    masks, rows, _ = _regions(windows, torch.Size((3, height, width)))
    assert bool(masks[: len(masks) - whole].any(dim=0).all())
    assert bool(masks[len(masks) - whole :].all())
    assert sum(window.whole for window in windows) == whole
    assert torch.equal(rows, torch.eye(height).expand_as(rows))
    first = windows[0]
    for top in range(height - first.height // 2 + 1):
        patch = range(top, top + first.height // 2)
        assert any({*patch} <= {*range(w.top, w.top + w.height)} for w in windows)


@given(st.integers(0, 2**31))
def test_a_window_nearby_lies_in_the_image_and_overlaps(seed: int) -> None:
    shape, generator = torch.Size((3, 32, 20)), torch.Generator().manual_seed(seed)
    window = Window(24, 0, 8, 5)
    moved = near(window, MultiStart(), shape, generator)
    assert 0 <= moved.top <= 24
    assert 0 <= moved.left <= 15
    assert abs(moved.top - window.top) <= 2
    assert (moved.height, moved.width) == (8, 5)
    entire = Window(0, 0, 32, 20, whole=True)
    assert near(entire, MultiStart(), shape, generator) == entire


def test_without_windows_as_many_starts_climb_on_the_whole_image() -> None:
    shape = torch.Size((3, 32, 32))
    entire = survey_windows(MultiStart(windows=False), shape)
    assert len(entire) == len(survey_windows(MultiStart(), shape)) == 51
    assert all(window.whole and (window.height, window.width) == (32, 32) for window in entire)


def test_far_starts_stand_in_for_those_on_the_whole_image_and_go_further() -> None:
    settings, shape = MultiStart(side=0.5, whole=2, far=5), torch.Size((3, 8, 8))
    windows = survey_windows(settings, shape)
    assert [window.share for window in windows if window.whole] == [settings.far_share] * 5
    assert len(windows) == len(survey_windows(replace(settings, far=0), shape)) + 3
    local = torch.tensor([not window.whole for window in windows])
    for far_share, radius in ((0.9, 2.0), (0.5, 2.0), (0.9, 0.1)):
        norms = bank(replace(settings, far_share=far_share), radius).delta.flatten(1).norm(dim=1)
        assert 0.9 * far_share * radius < float(norms[~local].max()) <= far_share * radius * (1 + 1e-6)
        assert float(norms[local].max()) <= radius * (1 + 1e-6)


def test_a_bank_with_far_starts_stays_to_the_end() -> None:
    shape, asked = torch.Size((3, 8, 8)), []

    def climb(windows: list[Window], each: int, enough: float) -> AscentResult:
        asked.append(windows)
        harm = torch.full((len(windows),), 50.0)
        return AscentResult(torch.zeros(len(windows), *shape), torch.zeros(2), "ascended", harm)

    search = Search(MultiStart(focused=32, every=1, far=6), shape, torch.Generator().manual_seed(0))
    banks = [search.bank(climb) for _ in range(4)]
    assert len(asked) == 2  # the survey and the focused starts of the first round
    assert len(asked[1]) == 6
    assert all(later is banks[0] for later in banks)


def test_a_cell_is_replaced_by_its_mean() -> None:
    line = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    torch.testing.assert_close(_average(5, 2, 0) @ line, torch.tensor([1.5, 1.5, 3.5, 3.5, 5.0]))
    torch.testing.assert_close(_average(5, 2, 1) @ line, torch.tensor([1.0, 2.5, 2.5, 4.5, 4.5]))


@pytest.mark.parametrize("ball", ["l2", "linf", "l1"])
@pytest.mark.parametrize("radius", [0.0, 0.5, 10.0])
def test_every_delta_is_in_the_ball(ball: str, radius: float) -> None:
    for delta in bank(MultiStart(side=0.5), radius, ball).delta:
        assert BALLS[ball](radius).contains(delta)


@pytest.mark.parametrize("radius", [0.1, 0.9])
def test_in_a_ball_of_the_largest_pixel_whole_starts_go_as_far_as_they_may(radius: float) -> None:
    settings = MultiStart(windows=False, whole_share=0.5)
    furthest = bank(settings, radius, "linf").delta.abs().flatten(1).max(dim=1).values
    torch.testing.assert_close(furthest, torch.full_like(furthest, 0.5 * radius))


@pytest.mark.parametrize("ball", ["l2", "linf", "l1"])
def test_without_a_bound_whole_starts_go_as_far_as_an_image_can(ball: str) -> None:
    settings = MultiStart(windows=False)
    endless = bank(settings, math.inf, ball)
    assert endless.status == "ascended"
    assert bool(endless.delta.isfinite().all())
    assert float(endless.delta.abs().max()) == pytest.approx(1.0)


def test_a_step_that_is_not_finite_is_not_taken() -> None:
    found = bank(MultiStart(reach=math.nan, side=0.5))
    assert found.status == "not_finite"
    assert not found.delta.any()


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100])
def test_micro_batches_do_not_change_the_bank(most: int) -> None:
    settings = MultiStart(side=0.5)
    whole, parts = bank(settings, each=3), bank(settings, each=3, micro_batch=most)
    torch.testing.assert_close(whole.delta, parts.delta)
    torch.testing.assert_close(whole.harm, parts.harm)


def test_the_survey_finds_the_planted_patch() -> None:
    images, _ = images_of(64, seed=1)
    settings = MultiStart(whole=0)
    found, windows = bank(settings), survey_windows(settings, images.shape[1:])
    assert found.harm is not None
    best = int(found.harm.argmax())
    assert (windows[best].top, windows[best].left) == (6, 6)
    with torch.no_grad():
        hits = (Planted()((images + found.delta[best].float()).clamp(0, 1)).argmax(1) == 4).float().mean()
    assert float(hits) > 0.95
    assert float((Planted()(images).argmax(1) == 4).float().mean()) < 0.4


def test_the_focused_starts_climb_where_the_survey_found_harm() -> None:
    settings, shape, asked = MultiStart(focused=50, every=2, whole=0), torch.Size((3, 8, 8)), []

    def climb(windows: list[Window], each: int, enough: float) -> AscentResult:
        asked.append((windows, each, enough))
        harm = torch.tensor([100.0 if (w.top, w.left) == (6, 6) else 0.01 for w in windows])
        return AscentResult(torch.zeros(len(windows), *shape), torch.zeros(2), "ascended", harm)

    search = Search(settings, shape, torch.Generator().manual_seed(0))
    first, kept, second = (search.bank(climb) for _ in range(3))
    assert [(each, enough) for _, each, enough in asked] == [(3, float("inf")), (2, 20.0), (2, 20.0)]
    assert len(first.delta) == len(asked[0][0]) + 50
    assert len(second.delta) == 50
    assert kept is first
    assert sum(w.top >= 5 and w.left >= 5 for w in asked[2][0]) >= 45


@pytest.mark.parametrize(("later", "taken"), [(5.9, False), (6.1, True), (math.nan, False)])
def test_a_later_bank_is_taken_only_where_it_is_harmful(later: float, taken: bool) -> None:
    harms = [50.0, 50.0, later, 70.0]  # survey, focused starts, second look, a third one
    shape, looks = torch.Size((3, 8, 8)), iter(harms)

    def climb(windows: list[Window], each: int, enough: float) -> AscentResult:
        harm = next(looks)
        return AscentResult(torch.full((len(windows), *shape), harm), torch.tensor([harm]), "ascended",
                            torch.full((len(windows),), harm))  # fmt: skip

    search = Search(MultiStart(focused=4, every=1, harmful=6.0), shape, torch.Generator().manual_seed(0))
    first, second, third = (search.bank(climb) for _ in range(3))
    assert first.status == "ascended"
    assert second.status == ("ascended" if taken else "no_harm")
    torch.testing.assert_close(second.trace, torch.tensor([later]), equal_nan=True)  # the look itself is reported
    assert bool((second.delta == (later if taken else 50.0)).all())
    assert bool((third.delta == (70.0 if taken else 50.0)).all())
    assert search.over is not taken


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (100, 10), (2560, 256), (5000, 256)])
def test_the_guard_holds_back_a_tenth_and_256_at_most(count: int, expected: int) -> None:
    kept, held = hold_back(GuardSettings(), torch.zeros(count), torch.Generator().manual_seed(0))
    assert (len(kept), len(held)) == (count - expected, expected)


def test_harm_is_measured_on_what_the_guard_holds_back(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Tensor, Tensor]] = []

    def spy(*args: Any, look: Any, **options: Any) -> AscentResult:
        drawn.append(look(500))
        return ascend_from_many(*args, look=look, **options)

    monkeypatch.setattr(unlearning, "ascend_from_many", spy)
    images, labels = images_of(60)
    recipe = replace(FAST, rounds=1, outer_steps=1, autocast=False, outer_lr=0.0)
    IBAU(L2Ball(10.0), recipe).unlearn(Planted(), images, labels)
    kept, _ = hold_back(GuardSettings(), labels, torch.Generator().manual_seed(0))
    held = {tuple(x.flatten().tolist()) for x in images} - {tuple(x.flatten().tolist()) for x in images[kept]}
    assert {tuple(x.flatten().tolist()) for x in drawn[0][0]} == held


@pytest.mark.parametrize(("harms", "made"), [([50.0], 1), ([10.0, 45.0], 2), ([10.0, 20.0, 15.0, 99.0], 3)])
def test_the_survey_is_repeated_until_some_window_stands_out(harms: list[float], made: int) -> None:
    shape, seen = torch.Size((3, 8, 8)), []

    def climb(windows: list[Window], each: int, enough: float) -> AscentResult:
        if each == 2:
            return AscentResult(torch.zeros(len(windows), *shape), torch.zeros(1), "ascended", torch.ones(len(windows)))
        harm = torch.full((len(windows),), 1.0 + len(seen))
        harm[0], harm[-1] = harms[len(seen)], 500.0  # the last one climbs on the whole image: it does not count
        seen.append(each)
        return AscentResult(harm.view(-1, 1, 1, 1).expand(-1, *shape), torch.zeros(1), "ascended", harm)

    settings = MultiStart(survey_images=3, surveys=3, standing_out=40.0, whole=1)
    bank = Search(settings, shape, torch.Generator().manual_seed(0)).bank(climb)
    assert len(seen) == made
    assert bank.harm is not None
    assert float(bank.harm[0]) == max(harms[:made])  # of each window the more harmful one
    assert float(bank.harm[1]) == made
    assert torch.equal(bank.delta[: -settings.focused, 0, 0, 0], bank.harm[: -settings.focused])


def test_in_a_window_a_pixel_goes_no_further_than_its_reach_in_all_steps() -> None:
    settings = MultiStart(reach=0.1, steps=5, whole=0)
    largest = float(bank(settings, radius=1e6).delta.abs().max())
    assert 0.05 < largest <= 0.1 * (1 + 1e-6)


def test_a_start_that_is_harmful_enough_stands_still() -> None:
    assert not bank(MultiStart(), enough=1e-9).delta.any()


@pytest.mark.parametrize(("harm", "sharp"), [(1e-3, True), (1e5, False)])
def test_harm_all_over_takes_the_plain_gradient_in_the_first_phase(harm: float, sharp: bool) -> None:
    images, labels = images_of(60)
    recipe = replace(
        FAST, sharp=Sharp(harm=harm, step=0.01, carriers=(0.5, 0.5), outer_steps=2), carriers=(0.5, 0.5), rounds=1,
        outer_steps=2, autocast=False, outer_lr=0.0, guard=None,
    )  # fmt: skip
    model = Planted()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    after = torch.cat(
        [p.flatten() for p in IBAU(L2Ball(2.0), recipe).unlearn(model, images, labels).model.parameters()]
    )
    moved = float(((after - before).norm() / before.norm()).detach())
    assert moved == pytest.approx(0.01 if sharp else 0.0, rel=1e-3)


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
    with pytest.raises(ValueError, match="side"):
        MultiStart(side=0.0)
    with pytest.raises(ValueError, match="far"):
        MultiStart(far=-1)


def test_the_outer_rate_and_the_share_of_carriers_follow_their_schedules() -> None:
    assert FAST.rate(0.0) == pytest.approx(FAST.outer_lr)
    assert FAST.rate(0.5) == pytest.approx(FAST.outer_lr / 2)
    warmed = replace(FAST, warmup=4)
    assert [warmed.rate(0.0, step) / FAST.outer_lr for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    recipe = replace(FAST, carriers=(0.5, 0.25, 0.1))
    assert [recipe.carried(100, step / 6) for step in range(6)] == [50, 50, 25, 25, 10, 10]
    assert replace(FAST, schedule="constant").rate(0.9) == FAST.outer_lr


def test_relative_steps_want_a_finite_radius() -> None:
    images, labels = images_of(4)
    network = Network(Planted())
    settings = Ascent(steps=1, step_size=0.1, relative=True)
    objective = UniversalLoss(network, images, labels)
    with pytest.raises(ValueError, match="radius: found inf; expected a finite one"):
        ascend([objective], network.theta, torch.zeros(3, 8, 8), L2Ball(math.inf), settings)


def outer_losses(monkeypatch: pytest.MonkeyPatch, recipe: Any, harm: list[float] | None = None) -> list[Any]:
    """(outer loss, inner loss of the response) of each outer step; with a bank of such harm."""
    outer: list[Any] = []
    inner: list[Any] = []
    plain, product, bank = unlearning.value_and_gradients, unlearning.response_product, Search.bank

    def differentiated(loss: Any, *rest: Any, **more: Any) -> Any:
        outer.append(loss)
        return plain(loss, *rest, **more)

    def responded(loss: Any, *rest: Any) -> Any:
        inner.append(loss)
        return product(loss, *rest)

    def found(self: Search, climb: Any) -> AscentResult:
        if harm is None:
            return bank(self, climb)
        self.harm = torch.tensor(harm)
        return AscentResult(torch.zeros(len(harm), 3, 8, 8), torch.zeros(2), "ascended", torch.tensor(harm))

    monkeypatch.setattr(unlearning, "value_and_gradients", differentiated)
    monkeypatch.setattr(unlearning, "response_product", responded)
    monkeypatch.setattr(Search, "bank", found)
    images, labels = images_of(60)
    IBAU(L2Ball(2.0), recipe).unlearn(Planted(), images, labels)
    return list(zip(outer, inner or [None] * len(outer), strict=True))


SOFT = replace(FAST, rounds=1, outer_steps=4, batch_size=20, autocast=False, outer_lr=0.0, guard=None)


def test_each_phase_has_its_share_of_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = outer_losses(monkeypatch, replace(SOFT, carriers=(0.5, 0.1), sharp=None))
    assert [int(outer.carriers.sum()) for outer, _ in steps] == [10, 10, 2, 2]


def test_images_carry_the_harmful_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    for outer, _ in outer_losses(monkeypatch, replace(SOFT, sharp=None), [1e-3, 1e6, 1e-3]):
        assert outer.assignment.tolist() == [1] * 20


def test_the_response_is_of_the_carriers_and_what_they_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    for outer, inner in outer_losses(monkeypatch, replace(SOFT, implicit=True, carriers=(0.5,), sharp=None)):
        assert torch.equal(inner.images, outer.images[outer.carriers])
        assert torch.equal(inner.labels, outer.labels[outer.carriers])
        assert torch.equal(inner.assignment, outer.assignment[outer.carriers])


@pytest.mark.parametrize(("harm", "steps"), [(0.5, 2), (2.0, 4)])
def test_fragile_is_what_is_so_at_most_places(monkeypatch: pytest.MonkeyPatch, harm: float, steps: int) -> None:
    """The median decides: one window that stands out is a backdoor's."""
    recipe = replace(SOFT, sharp=Sharp(harm=harm, outer_steps=2))
    assert len(outer_losses(monkeypatch, recipe, [1.0, 1.0, 1.0, 100.0])) == steps


@pytest.mark.parametrize(("enough", "status"), [(1e-9, "ascended"), (1e9, "no_gain")])
def test_starts_that_are_harmful_enough_from_the_first_have_ascended(enough: float, status: str) -> None:
    """And need climb no further: on the same images all the while; in a ball that is a point, nothing climbs."""
    images, labels = images_of(3)
    network, settings = Network(Planted()), MultiStart(windows=False, whole=1)
    windows = survey_windows(settings, images.shape[1:])[:1]
    found = ascend_from_many(
        network, lambda count: (images, labels), images.shape[1:], network.theta, L2Ball(0.0), settings, windows,
        each=3, enough=enough,
    )  # fmt: skip
    assert found.status == status
