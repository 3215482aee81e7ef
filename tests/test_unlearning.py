"""The rounds of Algorithm 1: what each recipe computes, what is refused, and what is never touched."""

from __future__ import annotations

import copy
import itertools
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ibau_defense import IBAU, RECIPES, Ascent, L2Ball, Network, UniversalLoss, ascend, unlearning
from ibau_defense.ascent import AscentResult
from ibau_defense.diagnostics import StepReport, summarise
from ibau_defense.guard import Guard, GuardSettings, Verdict
from ibau_defense.recipes import PAPER, REFERENCE, REFERENCE_GTSRB, Recipe
from ibau_defense.solvers import ConjugateGradient, FixedPoint


def tiny(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ELU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(4 * 16, 5),
    )  # fmt: skip
    return model.to(dtype).eval()


def clean_set(count: int = 200, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 8, 8, generator=generator, dtype=dtype), torch.arange(count) % 5


def authors_round(model: nn.Module, images: Tensor, labels: Tensor, carriers: list[int], clip: bool) -> nn.Module:
    """One round of the notebooks' algorithm, written out anew with plain autograd.

    δ: one SGD step of rate 10 (or Adam, rate 1) a mini-batch on predicted labels minus 0.001‖δ‖², then projected.
    Then for each mini-batch v ← (∂Φ/∂δ)ᵀv + ∇₁L five times from 0, Φ(δ) = δ − 0.1∇(−H + 0.001‖δ‖²) on the first
    mini-batch's true labels, and ∇₂L + (∂Φ/∂θ)ᵀv into Adam.
    """
    net = copy.deepcopy(model).eval()
    batches = list(zip(images.split(100), labels.split(100), strict=True))

    def push(x: Tensor) -> Tensor:
        return x.clamp(0, 1) if clip else x

    delta = torch.zeros_like(images[0], requires_grad=True)
    inner = torch.optim.Adam([delta], lr=1.0) if clip else torch.optim.SGD([delta], lr=10.0)
    for x, _ in batches:
        predicted = net(x).argmax(1)
        loss = -F.cross_entropy(net(push(x + delta)), predicted) + 0.001 * delta.norm() ** 2
        inner.zero_grad()
        loss.backward()
        inner.step()
    point = (delta * min(1.0, 10.0 / float(delta.detach().norm()))).detach().requires_grad_(True)
    theta = list(net.parameters())
    outer = torch.optim.Adam(theta, lr=0.001)
    for number, (x, y) in enumerate(batches):
        mask = torch.zeros(len(x), 1, 1, 1, dtype=x.dtype)
        mask[carriers[number]] = 1
        top = F.cross_entropy(net(push(x + mask * point)), y)
        pull = torch.autograd.grad(top, point, retain_graph=True)[0]
        direct = torch.autograd.grad(top, theta)
        x0, y0 = batches[0]
        bottom = -F.cross_entropy(net(push(x0 + point)), y0) + 0.001 * point.norm() ** 2
        mapped = point - 0.1 * torch.autograd.grad(bottom, point, create_graph=True)[0]
        v = torch.zeros_like(point)
        for _ in range(5):
            v = torch.autograd.grad(mapped, point, v, retain_graph=True)[0] + pull
        implicit = torch.autograd.grad(mapped, theta, v)
        for parameter, a, b in zip(theta, direct, implicit, strict=True):
            parameter.grad = a + b
        outer.step()
    return net


@pytest.mark.parametrize(("recipe", "clip"), [("reference", False), ("reference_gtsrb", True)])
def test_reference_is_the_authors_algorithm(recipe: str, clip: bool) -> None:
    model, (images, labels) = tiny(), clean_set(300)
    generator = torch.Generator().manual_seed(7)
    carriers = [int(torch.randperm(100, generator=generator)[0]) for _ in range(3)]
    expected = authors_round(model, images, labels, carriers, clip)
    found = IBAU(L2Ball(10.0), recipe, seed=7).unlearn(model, images, labels)
    for name, parameter in found.model.state_dict().items():
        assert torch.allclose(parameter, expected.state_dict()[name], atol=1e-9), name
    report = found.rounds[0]
    assert (report.steps, report.solver_steps) == (3, 5)
    assert report.implicit_norm > 0


def test_paper_is_algorithm_1_on_the_whole_clean_set() -> None:
    """One iteration by hand: δ from 0, T projected Adam steps, five fixed-point steps, θ − β∇ψ̃."""
    model, (images, labels) = tiny(), clean_set(40)
    network = Network(model)
    loss = UniversalLoss(network, images, labels)
    delta = ascend([loss], network.theta, torch.zeros_like(images[0]), L2Ball(0.5), PAPER.ascent).delta
    assert float(delta.norm()) <= 0.5 + 1e-9
    point = delta.clone().requires_grad_(True)
    theta = tuple(x.clone().requires_grad_(True) for x in network.theta)
    h = loss(point, theta)
    pull, *direct = torch.autograd.grad(h, (point, *theta), create_graph=True)
    v, b = torch.zeros_like(pull), pull.detach()
    for _ in range(5):  # (∇²₁H)⁻¹-series of step 0.1 on A = −∇²₁H
        v = v + 0.1 * torch.autograd.grad(pull, point, v, retain_graph=True)[0] + 0.1 * b
    implicit = torch.autograd.grad(pull, theta, v)
    cleaned = IBAU(L2Ball(0.5), "paper").unlearn(model, images, labels)
    assert cleaned.rounds[0].steps == 1
    for parameter, before, g, i in zip(cleaned.model.parameters(), theta, direct, implicit, strict=True):
        assert torch.allclose(parameter, before - 0.1 * (g + i), atol=1e-10)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_callers_module_is_never_changed(recipe: str) -> None:
    model, (images, labels) = tiny(torch.float32).train(), clean_set(100, torch.float32)
    next(model.parameters()).requires_grad_(False)
    model[0].bias.grad = torch.ones(4)
    state, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    random = torch.random.get_rng_state()
    cleaned = IBAU(recipe=recipe).unlearn(model, images, labels)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model[0].bias.grad, torch.ones(4))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not cleaned.model.training
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), cleaned.model.parameters(), strict=True))
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(cleaned.model.state_dict()[name], state[name])


def test_one_seed_one_result_and_another_seed_another() -> None:
    model, (images, labels) = tiny(), clean_set(200)
    first, again, other = (IBAU(recipe="reference", seed=s).unlearn(model, images, labels).model for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("count", [50, 150, 0])
def test_delta_on_no_image_is_an_error_not_a_no_op(count: int) -> None:
    """One in a hundred of a mini-batch of 50 is none: the authors' code then trains on clean images alone."""
    images, labels = clean_set(200)
    with pytest.raises(ValueError, match="none"):
        IBAU(recipe="reference").unlearn(tiny(), images[:count], labels[:count])


@pytest.mark.parametrize(("rounding", "share", "carried"), [("down", 0.29, 29), ("down", 0.57, 57), ("up", 0.07, 7)])
def test_a_share_of_a_hundred_images_is_its_percents(
    rounding: Literal["down", "up"], share: float, carried: int
) -> None:
    """In floating point they are 28.999999999999996, 56.99999999999999 and 7.000000000000001."""
    assert replace(REFERENCE, rounding=rounding, carriers=share).carried(100) == carried


@given(st.integers(2, 5000))
def test_the_share_that_is_advised_is_enough(last: int) -> None:
    recipe = replace(REFERENCE, batch_size=None, carriers=0.9 / last)
    with pytest.raises(ValueError, match="carriers") as caught:
        recipe.check_images(last)
    advised = re.search(r"a share of at least ([\d.e-]+), .* of at least (\d+)$", str(caught.value))
    assert advised is not None
    share, size = float(advised[1]), int(advised[2])
    assert 1 / last <= share <= 1.02 / last
    replace(recipe, carriers=share).check_images(last)
    replace(recipe, batch_size=size).check_images(3 * size)


@pytest.mark.parametrize("count", [2, 5, 113, 201])
def test_the_default_recipe_takes_any_number_of_images(count: int) -> None:
    images, labels = clean_set(count, torch.float32)
    outcome = IBAU(L2Ball(0.1)).unlearn(tiny(torch.float32), images, labels)
    assert sum(report.steps for report in outcome.rounds) > 0


@pytest.mark.parametrize(("count", "wrong", "told"), [(50, 0, False), (50, 50, True), (40, 40, False)])
def test_labels_that_are_not_the_models_are_told(count: int, wrong: int, told: bool) -> None:
    """Not with four held-back images, of which three wrong ones may be chance."""
    model, (images, _) = tiny(torch.float32), clean_set(count, torch.float32)
    labels = model(images).argmax(dim=1)
    labels[:wrong] = (labels[:wrong] + 1) % 5
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        IBAU(L2Ball(0.1), rounds=1).unlearn(model, images, labels)
    lines = [(Path(each.filename).name, str(each.message)) for each in found]
    expected = (
        "labels: the model gets 0% of 5 held-back clean images right; expected most of them."
        " Are these its classes' numbers, and are the images as it was trained on them?"
    )
    assert [line for line in lines if "held-back" in line[1]] == [(Path(__file__).name, expected)] * told


def test_the_guard_undoes_what_costs_the_clean_set_too_much() -> None:
    """A rate that would destroy the model: it comes back sound, and the status says why."""
    model, (images, labels) = tiny(torch.float32), clean_set(100, torch.float32)
    recipe = replace(RECIPES["fast"], outer_lr=50.0)
    outcome = IBAU(L2Ball(1.0), recipe).unlearn(model, images, labels)
    with torch.no_grad():
        before, after = (F.cross_entropy(net(images), labels) for net in (model, outcome.model))
    assert outcome.status == "diverged"
    assert "times in a row" in str(outcome.reason)
    assert float(after) < float(before) + 1.0


@pytest.mark.parametrize(("count", "status"), [(200, "diverged"), (10, "ok")])
def test_a_run_that_ends_less_accurate_says_so(count: int, status: str) -> None:
    """Labels by the model itself, so that it starts at 1.0; a guard that allows any loss on the way and none after.

    Of ten clean images one is held back: what becomes of one image is no evidence.
    """
    model, (images, _) = tiny(torch.float32), clean_set(count, torch.float32)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    lax = GuardSettings(every=1, loss_rise=math.inf, accuracy_drop=1.0, final_drop=0.0)
    outcome = IBAU(L2Ball(10.0), replace(RECIPES["fast"], outer_lr=0.05, guard=lax)).unlearn(model, images, labels)
    assert outcome.status == status
    if status == "diverged":
        assert "under the 1.000 before" in str(outcome.reason)


@pytest.mark.parametrize("size", [1, 7, 64, None])
def test_the_paper_recipe_takes_any_batch_size(size: int | None) -> None:
    images, labels = clean_set(20)
    report = IBAU(recipe=replace(PAPER, batch_size=size)).unlearn(tiny(), images, labels).rounds[0]
    assert report.steps == math.ceil(20 / (size or 20))


@pytest.mark.parametrize("radius", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_radius_is_enforced(recipe: str, radius: float) -> None:
    images, labels = clean_set(100)
    report = IBAU(L2Ball(radius), recipe).unlearn(tiny(), images, labels).rounds[0]
    assert report.delta_norm <= radius * (1 + 1e-6)


def test_micro_batches_do_not_change_the_result() -> None:
    model, (images, labels) = tiny(), clean_set(30)
    whole, parts = (IBAU(recipe="paper", micro_batch=m).unlearn(model, images, labels).model for m in (None, 7))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("most", [1, 2, 7])
@pytest.mark.parametrize("recipe", ["fast", "reference"])
def test_no_pass_takes_more_than_a_micro_batch(recipe: str, most: int) -> None:
    """Outer steps, ascents, the starts of a survey, predicted labels, and what the guard holds back."""
    model, (images, labels) = tiny(), clean_set(100)
    seen: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    IBAU(L2Ball(1.0), recipe, rounds=1, micro_batch=most).unlearn(model, images, labels)
    assert max(seen) == most


def test_a_time_limit_returns_what_there_is() -> None:
    model, (images, labels) = tiny(), clean_set(200)
    asked = iter([False, True])
    outcome = IBAU(recipe="reference").unlearn(model, images, labels, out_of_time=lambda: next(asked))
    assert outcome.status == "timeout"
    assert outcome.rounds[0].steps == 1


class Rooted(nn.Module):
    """A model that works and cannot be descended: the derivative of a square root at zero."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.base, self.nothing = tiny(dtype), nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.base(images)
        return logits + self.nothing.sqrt()


def test_a_gradient_that_is_not_finite_is_not_taken() -> None:
    model, (images, labels) = Rooted(torch.float64).eval(), clean_set(20)
    outcome = IBAU(recipe="paper").unlearn(model, images, labels)
    assert outcome.status == "diverged"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), outcome.model.parameters(), strict=True))


IMAGES, LABELS = clean_set(10)
WITH_NAN = IMAGES.clone().index_fill_(0, torch.tensor([3]), math.nan)
WRONG_SETS = {
    "labels missing": (IMAGES, LABELS[:9], r"labels: found 9; expected one for each of 10 images"),
    "bytes": ((IMAGES * 255).to(torch.uint8), LABELS, r"images: found torch\.uint8; expected a floating-point type"),
    "levels of 255": (IMAGES * 255, LABELS, r"images: found values from .* to 25\d.*; expected all of them in"),
    "standardised": (IMAGES - 0.5, LABELS, r"images: found values from -0\.49\d* to 0\.49"),
    "NaN": (WITH_NAN, LABELS, r"images: found values from nan to nan; expected all of them in \[0, 1\]"),
    "int32": (IMAGES, LABELS.int(), r"labels: found torch\.int32; expected torch\.int64"),
    "logits": (IMAGES, LABELS.double(), r"labels: found torch\.float64; expected torch\.int64"),
}


@pytest.mark.parametrize("recipe", ["paper", "fast"])
@pytest.mark.parametrize("name", WRONG_SETS)
def test_a_clean_set_of_another_kind_is_refused(name: str, recipe: str) -> None:
    images, labels, message = WRONG_SETS[name]
    with pytest.raises(ValueError, match=message):
        IBAU(recipe=recipe).unlearn(tiny(), images, labels)


def test_a_rounding_error_beyond_white_is_no_other_kind() -> None:
    images, labels = clean_set(10)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 1 + 5e-7, -5e-7
    assert IBAU(recipe="paper").unlearn(tiny(), images, labels).status == "ok"


def test_a_rounds_seconds_are_those_of_its_ascent_and_guard_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still but while one of these works: ten seconds an ascent, one a look of the guard."""
    clock, plain_ascent, plain_check = [0.0], ascend, Guard.check

    def slow_ascent(*args: Any) -> AscentResult:
        clock[0] += 10
        return plain_ascent(*args)

    def slow_check(guard: Guard, *args: Any) -> Verdict:
        clock[0] += 1
        return plain_check(guard, *args)

    monkeypatch.setattr(unlearning, "now", lambda device: clock[0])
    monkeypatch.setattr(unlearning, "ascend", slow_ascent)
    monkeypatch.setattr(Guard, "check", slow_check)
    images, labels = clean_set(40)
    recipe = replace(PAPER, batch_size=20, rounds=2, guard=GuardSettings(every=5, loss_rise=math.inf))
    outcome = IBAU(L2Ball(0.1), recipe).unlearn(tiny(), images, labels)
    assert [report.seconds for report in outcome.rounds] == [2 * 10 + 1] * 2


STEP = StepReport(
    loss=0.0, inner_before=0.0, inner_after=0.0, inner_status="ascended", delta_norm=0.0, direct_norm=0.0,
    implicit_norm=0.0, angle=0.0, finite=True, solver_status="max_steps",
)  # fmt: skip


@pytest.mark.parametrize("order", list(itertools.permutations([0.5, math.nan, 2.0])))
def test_an_unknown_residual_is_the_worst_in_whatever_order(order: tuple[float, ...]) -> None:
    report = summarise(0, [replace(STEP, residual=value, curvature=value) for value in order])
    assert math.isnan(report.residual or 0.0)
    assert math.isnan(report.curvature or 0.0)
    known = summarise(0, [replace(STEP, residual=value, curvature=value) for value in order if value == value])
    assert (known.residual, known.curvature) == (2.0, 0.5)
    nothing = summarise(0, [replace(STEP, solver_status=None)])
    assert (nothing.residual, nothing.curvature) == (None, None)


def test_a_round_is_told_by_its_median_step_and_its_longest_solve() -> None:
    losses, solves = (3.0, 1.0, math.nan, 2.0), (2, 5, None, 1)
    steps = [replace(STEP, loss=loss, solver_steps=taken) for loss, taken in zip(losses, solves, strict=True)]
    report = summarise(0, steps)
    assert (report.loss, report.solver_steps) == (2.0, 5)


def test_danskin_drops_the_implicit_term_and_nothing_else() -> None:
    model, (images, labels) = tiny(), clean_set(30)
    recipe = replace(PAPER, implicit=False)
    report = IBAU(recipe=recipe).unlearn(model, images, labels).rounds[0]
    assert (report.implicit_norm, report.solver_status) == (0.0, {})
    assert math.isnan(report.angle)
    assert report.as_dict()["angle"] is None


def test_the_boundary_form_is_better_posed_than_equation_3_at_a_constrained_maximiser() -> None:
    model, (images, labels) = tiny(), clean_set(50)
    ascent = Ascent(steps=200, step_size=0.02, optimizer="normalised")
    solver = ConjugateGradient(max_steps=200, rtol=1e-8)
    plain, boundary = (
        IBAU(L2Ball(0.5), Recipe(ascent=ascent, solver=solver, boundary=b)).unlearn(model, images, labels).rounds[0]
        for b in (False, True)
    )
    assert boundary.solver_status == {"converged": 1}
    assert boundary.curvature is not None
    assert boundary.curvature > 0
    assert plain.solver_status == {"breakdown": 1}


def test_ascent_raises_the_loss_and_reports_when_it_does_not() -> None:
    network, (images, labels) = Network(tiny()), clean_set(50)
    loss = UniversalLoss(network, images, labels)
    up = ascend([loss], network.theta, torch.zeros_like(images[0]), L2Ball(5.0), Ascent(20, 0.1, "normalised"))
    assert up.status == "ascended"
    assert float(up.trace[-1]) > float(up.trace[0])
    still = ascend([loss], network.theta, torch.zeros_like(images[0]), L2Ball(0.0), Ascent(5, 0.1))
    assert still.status == "no_gain"


def test_unknown_recipe_and_bad_settings_are_refused() -> None:
    images, labels = clean_set(10)
    with pytest.raises(ValueError, match="paper, reference"):
        IBAU(recipe="magic").unlearn(tiny(), images, labels)
    with pytest.raises(ValueError, match="carriers"):
        replace(REFERENCE, carriers=0.0)
    with pytest.raises(ValueError, match="batch_size"):
        replace(REFERENCE_GTSRB, batch_size=0)
    with pytest.raises(ValueError, match=r"delta_per: found 'step' with starts"):
        replace(RECIPES["fast"], delta_per="step")
    with pytest.raises(ValueError, match="boundary: found True with starts"):
        replace(RECIPES["fast"], implicit=True, boundary=True)
    assert isinstance(REFERENCE.solver, FixedPoint)


def test_a_relative_step_is_a_share_of_the_radius() -> None:
    network, (images, labels) = Network(tiny()), clean_set(50)
    loss, start = UniversalLoss(network, images, labels), torch.zeros_like(images[0])
    for relative, length in ((True, 0.5), (False, 0.25)):
        found = ascend([loss], network.theta, start, L2Ball(2.0), Ascent(1, 0.25, "normalised", relative=relative))
        assert float(found.delta.norm()) == pytest.approx(length)


def test_the_implicit_term_is_scaled_to_its_share_of_the_direct_one() -> None:
    model, (images, labels) = tiny(), clean_set(40)

    def moved(**changes: Any) -> Tensor:
        after = IBAU(L2Ball(0.5), replace(PAPER, **changes)).unlearn(model, images, labels).model
        return torch.cat(
            [(a - b).detach().flatten() for a, b in zip(after.parameters(), model.parameters(), strict=True)]
        )

    direct, whole, shared = moved(implicit=False), moved(), moved(implicit_share=0.5)
    assert float((whole - direct).norm()) != pytest.approx(0.5 * float(direct.norm()), rel=0.1)
    assert float((shared - direct).norm()) == pytest.approx(0.5 * float(direct.norm()), rel=1e-6)
    torch.testing.assert_close(F.normalize(shared - direct, dim=0), F.normalize(whole - direct, dim=0))


def test_terms_are_told_with_their_angle_and_whether_they_are_finite() -> None:
    ascent = AscentResult(torch.zeros(1, 1, 1), torch.tensor([1.0, 3.0]), "ascended")
    direct = (torch.tensor([2.0, 0.0]), torch.zeros(2))

    def measured(*implicit: float) -> StepReport:
        terms = (torch.tensor(implicit), torch.zeros(2))
        return StepReport.measure(torch.tensor(0.5), ascent, L2Ball(1.0), direct, terms, None)

    assert [measured(*each).angle for each in ((1.0, 1.0), (-1.0, 0.0), (-1.0, 1.0))] == pytest.approx([45, 180, 135])
    assert (measured(3.0, 4.0).direct_norm, measured(3.0, 4.0).implicit_norm) == (2.0, 5.0)
    assert (measured(1.0, 1.0).inner_before, measured(1.0, 1.0).inner_after) == (1.0, 3.0)
    assert [measured(*each).finite for each in ((1.0, 1.0), (math.nan, 0.0), (math.inf, 0.0))] == [True, False, False]
