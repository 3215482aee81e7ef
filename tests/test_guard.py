"""The guard of the outer loop: what it lets pass, what it undoes, and that what it undid is done again."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_unlearning import Rooted, clean_set, tiny
from torch import Tensor, nn

from ibau_defense import IBAU, L2Ball, Network
from ibau_defense.guard import Guard, GuardSettings
from ibau_defense.recipes import FAST, PAPER, Recipe

SETTINGS = GuardSettings(loss_rise=100.0, accuracy_drop=0.4, final_drop=0.1)


class Shifted(nn.Module):
    """Right on every image whose first pixel is at least ``threshold``: an accuracy to choose."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1)[:, 0] - self.threshold
        return torch.stack([score, torch.full_like(score, -1e-6)], dim=1)


def watched(count: int = 100, micro_batch: int | None = None) -> tuple[Shifted, Guard]:
    """A model that starts at an accuracy of 1 on ``count`` images, and its guard."""
    images = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    model = Shifted()
    network = Network(model)
    optimizer = torch.optim.SGD(network.module.parameters(), lr=1.0)
    labels = torch.zeros(count, dtype=torch.int64)
    return network.module, Guard(SETTINGS, network, optimizer, images, labels, micro_batch=micro_batch)  # type: ignore[return-value]


def lose(model: Shifted, share: float) -> None:
    with torch.no_grad():
        model.threshold.fill_(share)


@pytest.mark.parametrize(
    ("lost", "to_come", "sound"),
    [(0.3, 1.0, True), (0.5, 1.0, False), (0.3, 0.5, False), (0.2, 0.5, True), (0.2, 0.0, False), (0.05, 0.0, True)],
)
def test_what_may_be_lost_falls_with_the_rates_to_come(lost: float, to_come: float, sound: bool) -> None:
    model, guard = watched()
    lose(model, lost)
    assert guard.check(to_come).sound is sound
    assert float(model.threshold.detach()) == pytest.approx(lost if sound else 0.0)
    assert guard.rate == (1.0 if sound else SETTINGS.shrink)


def test_no_share_of_a_run_to_come_allows_more_than_the_drop() -> None:
    model, guard = watched()
    guard.settings = replace(SETTINGS, accuracy_drop=0.05, final_drop=0.1)
    lose(model, 0.07)
    assert not guard.check(0.0).sound


def test_steps_that_win_accuracy_back_stand_however_little() -> None:
    model, guard = watched()
    lose(model, 0.35)
    assert guard.check(1.0).sound
    lose(model, 0.3)
    assert guard.check(0.0).sound
    assert guard.lost_too_much
    lose(model, 0.32)
    assert not guard.check(0.0).sound
    assert guard.lost == pytest.approx(0.3, abs=0.011)


def test_micro_batches_do_not_change_a_verdict() -> None:
    verdicts = []
    for micro_batch in (None, 7, 1000):
        model, guard = watched(600, micro_batch)
        lose(model, 0.3)
        verdicts.append(guard.check(1.0))
    assert [verdict.accuracy for verdict in verdicts] == [verdicts[0].accuracy] * 3
    assert [verdict.loss for verdict in verdicts] == pytest.approx([verdicts[0].loss] * 3)


def test_one_image_of_few_is_no_reason_to_undo() -> None:
    model, guard = watched(5)
    lose(model, 0.1)
    assert guard.check(0.0).sound


@pytest.mark.parametrize("rounds", [1, 2])
def test_undone_steps_are_taken_again_at_a_smaller_rate(rounds: int) -> None:
    """A rate far too high, as the default is for some networks: the run ends with all its steps, at one that is not."""
    model, (images, _) = tiny(torch.float32), clean_set(200, torch.float32)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    guard = GuardSettings(every=15, retries=20)
    outcome = IBAU(L2Ball(1.0), replace(FAST, rounds=rounds, outer_lr=10.0, guard=guard)).unlearn(model, images, labels)
    assert outcome.status == "ok"
    assert [report.steps for report in outcome.rounds] == [15] * rounds
    assert outcome.rounds[0].undone >= 15
    assert outcome.rounds[0].undone % 15 == 0
    with torch.no_grad():
        assert float((outcome.model(images).argmax(dim=1) == labels).float().mean()) > 0.8
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), outcome.model.parameters(), strict=True))


def test_what_a_time_limit_leaves_may_have_lost_no_more_than_a_run_may_in_the_end() -> None:
    """Steps that lost more than that, which later ones might have won back, had the time not run out."""
    model, (images, _) = tiny(torch.float32), clean_set(200, torch.float32)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    recipe = replace(
        FAST, outer_lr=0.1, guard=GuardSettings(every=15, loss_rise=math.inf, accuracy_drop=1.0, final_drop=0.0)
    )
    asked = iter([False] * 5 + [True])
    outcome = IBAU(L2Ball(1.0), recipe).unlearn(model, images, labels, out_of_time=lambda: next(asked))
    assert outcome.status == "timeout"
    assert (outcome.rounds[0].steps, outcome.rounds[0].undone) == (0, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), outcome.model.parameters(), strict=True))


@pytest.mark.parametrize("recipe", [FAST, replace(FAST, schedule="constant", warmup=1), PAPER])
def test_the_rates_to_come_are_the_share_of_their_sum(recipe: Recipe) -> None:
    steps = 2000
    rates = torch.tensor([recipe.rate(step / steps) for step in range(steps)])
    for done in (0, 500, 1000, 1500, 2000):
        assert recipe.to_come(done / steps) == pytest.approx(float(rates[done:].sum() / rates.sum()), abs=2e-3)


def test_a_run_without_one_finite_hypergradient_is_not_ok() -> None:
    images, labels = clean_set(40, torch.float32)
    outcome = IBAU(L2Ball(1.0), replace(FAST, rounds=1)).unlearn(Rooted(torch.float32).eval(), images, labels)
    assert (outcome.status, outcome.reason) == ("diverged", "no hypergradient was finite; no step was taken")


def test_undos_in_a_row_exhaust_it_and_each_makes_the_rate_smaller() -> None:
    model, guard = watched()
    for undone in range(1, SETTINGS.retries + 2):
        lose(model, 0.9)
        assert not guard.check().sound
        assert guard.rate == SETTINGS.shrink**undone
        assert guard.exhausted is (undone > SETTINGS.retries)


def test_a_sound_check_between_undos_starts_the_count_anew() -> None:
    model, guard = watched()
    for lost in (0.9, 0.9, 0.9, 0.9, 0.0, 0.9, 0.9, 0.9, 0.9):
        lose(model, lost)
        guard.check()
    assert (guard.undone, guard.exhausted) == (8, False)


@pytest.mark.parametrize(("shift", "sound"), [(0.5, True), (3.0, False)])
def test_the_loss_may_rise_by_so_much(shift: float, sound: bool) -> None:
    """By 0.3 and by 2.1 nats, whatever the accuracy."""
    model, guard = watched()
    guard.settings = GuardSettings(loss_rise=0.5, accuracy_drop=1.0, final_drop=1.0)
    lose(model, shift)
    verdict = guard.check()
    assert verdict.sound is sound
    assert (verdict.loss - guard.before.loss < 0.5) is sound


def test_an_undo_brings_the_optimisers_state_back() -> None:
    images, model = torch.linspace(0, 1, 100).view(-1, 1, 1, 1), Shifted()
    network = Network(model)
    optimizer = torch.optim.Adam(network.module.parameters(), lr=1e-3)
    guard = Guard(SETTINGS, network, optimizer, images, torch.zeros(100, dtype=torch.int64))

    def step(gradient: float) -> None:
        network.module.threshold.grad = torch.tensor(gradient)
        optimizer.step()

    step(1.0)
    assert guard.check().sound
    kept = {key: value.clone() for key, value in optimizer.state_dict()["state"][0].items()}
    step(-100.0)
    lose(network.module, 0.9)  # type: ignore[arg-type]
    assert not guard.check().sound
    back = optimizer.state_dict()["state"][0]
    assert {key: float(value) for key, value in back.items()} == {key: float(value) for key, value in kept.items()}


def test_what_was_undone_is_taken_again_from_where_the_method_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its warm-up and its schedule too; and the guard is told what share of the rates is to come."""
    model, (images, _) = tiny(torch.float32), clean_set(200, torch.float32)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    asked: list[tuple[float, int]] = []
    told: list[float] = []
    rate, check = Recipe.rate, Guard.check

    def rated(self: Recipe, progress: float, step: int = 10**9) -> float:
        asked.append((progress, step))
        return rate(self, progress, step)

    def checked(self: Guard, to_come: float = 1.0) -> Any:
        told.append(to_come)
        return check(self, to_come)

    monkeypatch.setattr(Recipe, "rate", rated)
    monkeypatch.setattr(Guard, "check", checked)
    guard = GuardSettings(every=5, retries=20)
    recipe = replace(FAST, rounds=1, sharp=None, outer_lr=10.0, guard=guard)
    outcome = IBAU(L2Ball(1.0), recipe).unlearn(model, images, labels)
    assert outcome.rounds[0].undone >= 5
    assert asked[:5] == asked[5:10] == [(step / 15, step) for step in range(5)]
    assert asked[-1] == (14 / 15, 14)
    assert told[:2] == [pytest.approx(recipe.to_come(5 / 15))] * 2
    assert told[-1] == pytest.approx(0.0, abs=1e-9)
