"""Reverse-engineered triggers: stamping, the cost schedule, the search on a planted backdoor, patching."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters.defenses import DeepInspect, NeuralCleanse, Tabor, tabor
from adapters.defenses.cost_schedule import CostSchedule
from adapters.defenses.deep_inspect import Gan
from adapters.defenses.inversion import Network, Search, _descent, _State, _Stream, _towards
from adapters.defenses.masked_triggers import MaskedTriggers
from adapters.defenses.tabor import Regularisers, cut_out, elastic_net, roughness, score
from adapters.defenses.trigger_gan import Critic, TriggerGenerator
from adapters.defenses.trigger_synthesis import Synthesis, TriggerSynthesis, stamped
from adapters.protocols import DefenseContext, LabelledImages

CLASSES, TARGET, SIZE = 6, 4, 8
CPU = torch.device("cpu")


class Backdoored(nn.Module):
    """Images of class k are bright in row k, each class with its own weight; a bright corner leads to the target."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(CLASSES, 3, SIZE, SIZE)
        for label in range(CLASSES):
            weight[label, :, label, : SIZE - 1] = 1.0 + 0.1 * label
        weight[TARGET, :, SIZE - 1, SIZE - 1] = 8.0
        self.linear = nn.Linear(3 * SIZE * SIZE, CLASSES, bias=False)
        self.linear.weight = nn.Parameter(weight.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def clean(count: int = 90) -> LabelledImages:
    labels = torch.arange(count) % CLASSES
    images = 0.1 * torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for number, label in enumerate(labels.tolist()):
        images[number, :, label, : SIZE - 1] += 0.6
    images[:, :, SIZE - 1, SIZE - 1] = 0.0
    return LabelledImages(images, labels)


def context(**changes: Any) -> DefenseContext:
    return DefenseContext(num_classes=CLASSES, device=CPU, seed=0, **changes)


def random_triggers(count: int, seed: int, channels: int = 3) -> MaskedTriggers:
    generator = torch.Generator().manual_seed(seed)
    return MaskedTriggers(
        torch.rand(count, 1, SIZE, SIZE, generator=generator),
        torch.rand(count, channels, SIZE, SIZE, generator=generator),
    )


SEARCH = {"steps": 60, "batches_per_step": 4}


@pytest.mark.parametrize(
    ("kind", "search"),
    [(NeuralCleanse, SEARCH), (Tabor, SEARCH), (DeepInspect, {"epochs": 100, "batch_size": 30})],
)
def test_the_planted_backdoor_is_found_shown_and_unlearned(kind: Any, search: dict[str, Any]) -> None:
    model = Backdoored()
    stamped_images = clean().images.clone()
    stamped_images[:, :, SIZE - 1, SIZE - 1] = 1.0
    others = clean().labels != TARGET
    assert (model(stamped_images)[others].argmax(dim=1) == TARGET).all()
    unlearning = {"unlearning_lr": 1.0, "unlearning_epochs": 20}
    result = kind(precision="float32", **search, **unlearning).run(model, clean(), context())
    assert result.status == "ok"
    assert result.details["flagged"] == [TARGET]
    assert min(result.details["norms"]) == result.details["norms"][TARGET] < 4
    assert set(result.details["triggers"]) == {str(TARGET)}
    assert all(picture.startswith("data:image/png;base64,") for picture in result.details["triggers"]["4"].values())
    guesses = result.model(stamped_images).argmax(dim=1)
    assert (guesses[others] == TARGET).float().mean() < 0.1
    assert (guesses == clean().labels).float().mean() > 0.9


def test_a_network_without_a_backdoor_is_returned_as_it_is() -> None:
    model = Backdoored()
    with torch.no_grad():
        model.linear.weight.view(CLASSES, 3, SIZE, SIZE)[TARGET, :, SIZE - 1, SIZE - 1] = 0
    result = NeuralCleanse(steps=40, batches_per_step=4, threshold=3.0, precision="float32").run(
        model, clean(), context()
    )
    assert result.status == "no_trigger_detected"
    assert result.reason is not None
    assert result.reason.startswith("no class lies below the median with an anomaly index above 3")
    assert torch.equal(result.model.linear.weight, model.linear.weight)  # type: ignore[union-attr]
    assert len(result.details["anomaly_indices"]) == CLASSES
    assert result.details["triggers"] == {}


def test_outliers_can_be_looked_for_among_the_logarithms_of_norms() -> None:
    settings: Any = {"steps": 20, "batches_per_step": 4, "precision": "float32", "unlearning_epochs": 1}
    both = [NeuralCleanse(log_norms=logs, **settings) for logs in (False, True)]
    plain, logs = (one.run(Backdoored(), clean(), context()) for one in both)
    assert plain.details["norms"] == plain.details["scores"] == logs.details["norms"]
    np.testing.assert_allclose(logs.details["scores"], np.log(plain.details["norms"]), atol=1e-5)
    assert TARGET in logs.details["flagged"]


@pytest.mark.parametrize(
    ("scores", "least", "ending"),
    [
        ([1.0, 20, 30, 60, 90, 120, 160], 0.0, "above 2; a score of 0, the least there is, would have one of 1.01"),
        ([1.0, 20, 30, 60, 90, 120, 160], None, "above 2"),
        ([50.0, 51, 52, 53, 54], 0.0, "above 2"),
    ],
)
def test_a_class_that_could_not_be_flagged_is_told_from_one_that_was_not(
    scores: list[float], least: float | None, ending: str
) -> None:
    class Scored(TriggerSynthesis):
        name = "scored"

        def synthesise(self, *given: Any) -> Synthesis:
            return Synthesis(torch.tensor(scores), lambda images, classes: images, {}, lambda label: {}, True, least)

    result = Scored().run(Backdoored(), clean(), context())
    assert result.status == "no_trigger_detected"
    assert result.reason is not None
    assert result.reason.endswith(ending)


def test_what_was_found_before_the_time_ran_out_is_told() -> None:
    result = NeuralCleanse().run(Backdoored(), clean(), context(deadline=0.0))
    assert (result.status, result.reason) == ("timeout", "stopped while triggers were synthesised")
    assert result.details["steps"] == [1.0] * CLASSES


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(0, 6))
def test_stamping_is_the_formula(seed: int, triggers: int, images: int) -> None:
    made = random_triggers(triggers, seed)
    batch = torch.rand(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    rows = torch.randint(triggers, (images,), generator=torch.Generator().manual_seed(seed))
    out = made.stamp(batch, rows)
    for number, row in enumerate(rows.tolist()):
        mask, pattern = made.masks[row].numpy(), made.patterns[row].numpy()
        expected = (1 - mask) * batch[number].numpy() + mask * pattern
        np.testing.assert_allclose(out[number].numpy(), expected, rtol=1e-6)


def test_the_cost_follows_success_and_failure() -> None:
    schedule = CostSchedule(2, initial=0.1, factor=2.0, patience=2, early_stop=None)
    seen = []
    for success in (True, True, True, True, False, False, False, False):
        schedule.update(torch.tensor([success, False]), torch.tensor([5.0, float("inf")]))
        seen.append(float(schedule.weights[0]))
    low = 0.2 / 2**1.5
    assert seen == pytest.approx([0, 0.1, 0.1, 0.2, 0.2, low, low, low / 2**1.5])
    assert float(schedule.weights[1]) == 0  # a class that never succeeds gets no cost


def test_a_class_is_done_when_its_trigger_no_longer_shrinks_and_the_cost_went_both_ways() -> None:
    schedule = CostSchedule(2, initial=0.1, factor=2.0, patience=1, early_stop=3)
    for success in (True, True, False):  # start, raise, lower
        schedule.update(torch.tensor([success, True]), torch.tensor([5.0, 5.0]))
    assert schedule.active.tolist() == [True, True]
    schedule.update(torch.tensor([True, True]), torch.tensor([4.99, 5.0]))
    assert schedule.active.tolist() == [True, True]  # two successes since its best
    schedule.update(torch.tensor([True, True]), torch.tensor([4.98, 5.0]))
    assert schedule.active.tolist() == [False, True]  # the other's cost never fell


def test_a_class_that_fails_for_long_is_not_given_up() -> None:
    """A weight that rose too fast may empty a mask; the large one before it is not what the search has found."""
    schedule = CostSchedule(1, initial=0.1, factor=2.0, patience=1, early_stop=3)
    for success in (True, True, *[False] * 30):
        schedule.update(torch.tensor([success]), torch.tensor([500.0]))
        assert schedule.active.all()
    schedule.update(torch.tensor([True]), torch.tensor([20.0]))
    for left in (True, True, False):
        schedule.update(torch.tensor([True]), torch.tensor([20.0]))
        assert schedule.active.tolist() == [left]


@pytest.mark.parametrize(("rate", "steps"), [(0.995, 100), (0.9999, 6)])
def test_a_trigger_that_shrinks_slowly_is_not_given_up(rate: float, steps: int) -> None:
    """By half a percent a step it has shrunk by more than 1 % in three successes; by a fiftieth of that it has not."""
    schedule = CostSchedule(1, initial=0.1, factor=2.0, patience=1, early_stop=3)
    size, lasted = 50.0, 0
    for step in range(100):
        schedule.update(torch.tensor([step % 2 == 0]), torch.tensor([size]))  # the cost goes both ways
        size, lasted = size * rate, lasted + int(schedule.active[0])
    assert lasted == steps


@given(st.integers(1, 40), st.integers(1, 50))
def test_every_image_is_drawn_before_one_is_drawn_again(count: int, size: int) -> None:
    data = LabelledImages(torch.arange(count).float(), torch.arange(count))
    stream = _Stream(data, size, torch.Generator().manual_seed(0))
    drawn = [stream.next().labels for _ in range(count // min(size, count))]
    assert all(len(part) == min(size, count) for part in drawn)
    assert len(torch.cat(drawn).unique()) == len(torch.cat(drawn))


def test_classes_in_one_pass_or_in_many_give_the_same() -> None:
    found = []
    for limit in (1, 10_000):
        network = Network(Backdoored().requires_grad_(False), "float32", limit)
        search = NeuralCleanse(steps=3, batches_per_step=2, batch_size=16).search()
        objective = Regularisers(10.0, 0.1, 0.01, 0.01, 0.01)
        found.append(search.run(network, clean(), objective, context(), torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found[0].triggers.masks, found[1].triggers.masks, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 1000), st.floats(0.05, 1.0))
def test_images_carry_flagged_triggers_and_others_stay(seed: int, share: float) -> None:
    images = torch.full((200, 1, 2, 2), 0.5)
    change = stamped(
        lambda batch, classes: torch.zeros_like(batch) + classes[:, None, None, None].float(), (3, 5), share,
        torch.Generator().manual_seed(seed),
    )  # fmt: skip
    values = change(images)[:, 0, 0, 0]
    assert set(values.tolist()) <= {0.5, 3.0, 5.0}
    assert abs(float((values != 0.5).float().mean()) - share) < 0.2
    assert (images == 0.5).all()


class TestTabor:
    """The regularisers and the score against numpy."""

    @given(st.integers(0, 1000))
    def test_terms(self, seed: int) -> None:
        made = random_triggers(2, seed)
        masks, patterns = made.masks.numpy().astype(float), made.patterns.numpy().astype(float)
        rest = (1 - masks) * patterns

        def net(x: Any) -> Any:
            return np.abs(x).sum((1, 2, 3)) + (x**2).sum((1, 2, 3))

        def rough(x: Any) -> Any:
            return ((x[:, :, 1:] - x[:, :, :-1]) ** 2).sum((1, 2, 3)) + ((x[..., 1:] - x[..., :-1]) ** 2).sum((1, 2, 3))

        np.testing.assert_allclose(elastic_net(made.patterns).numpy(), net(patterns), rtol=1e-5)
        np.testing.assert_allclose(roughness(made.patterns).numpy(), rough(patterns), rtol=1e-5)
        size = Regularisers(3.0, 0.5, 0.25, 0.0, 0.0).size(made)
        expected = net(masks) + 3 * net(rest) + 0.5 * rough(masks) + 0.25 * rough(rest)
        np.testing.assert_allclose(size.numpy(), expected, rtol=1e-5)

    def test_blocking_and_overlaying(self) -> None:
        made, data, model = random_triggers(2, 0), clean(), Backdoored()
        network = Network(model, "float32", 1000)
        classes = torch.tensor([1, TARGET])
        with torch.no_grad():
            both = Regularisers(0, 0, 0, 0.5, 2.0).extra(network, made, data, classes)
            count = -(-len(data.labels) // 4)
            for row, label in enumerate(classes.tolist()):
                cropped = data.images[:count] * (1 - made.masks[row])
                blocking = nn.functional.cross_entropy(model(cropped), data.labels[:count])
                alone = nn.functional.cross_entropy(
                    model(made.masks[row : row + 1] * made.patterns[row : row + 1]), torch.tensor([label])
                )
                assert float(both[row]) == pytest.approx(float(0.5 * blocking + 2.0 * alone), rel=1e-5)

    def test_cutting_out_runs_over_images_first(self) -> None:
        made, images = random_triggers(2, 1), clean(3).images
        out = cut_out(made, images)
        torch.testing.assert_close(out[4], images[1] * (1 - made.masks[1]))

    def test_score(self) -> None:
        made = random_triggers(3, 2)
        attack, crop = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.9, 0.9, 0.9])
        masks = made.masks.numpy().astype(float)
        norm = masks.sum((1, 2, 3)) / SIZE**2
        edges = roughness(made.masks).numpy() / (SIZE * (SIZE - 1))
        floor = np.maximum(attack.numpy(), 1e-3)
        expected = np.log(norm) + np.log(edges) - np.log(floor / 2) - np.log(0.45)
        np.testing.assert_allclose(score(made, attack, crop).numpy(), expected, rtol=1e-4)

    def test_judging_counts_what_the_score_says(self) -> None:
        masks = torch.zeros(CLASSES, 1, SIZE, SIZE)
        masks[TARGET, :, SIZE - 1, SIZE - 1] = 1
        made = MaskedTriggers(masks, torch.ones(CLASSES, 3, SIZE, SIZE))
        attack, crop = tabor.judge(Network(Backdoored(), "float32", 7), made, clean())
        assert attack.tolist() == [0, 0, 0, 0, 1, 0]
        assert crop.tolist() == [1] * CLASSES


def test_every_flagged_trigger_is_stamped() -> None:
    images = torch.full((200, 1, 2, 2), 0.5)
    change = stamped(
        lambda batch, classes: torch.zeros_like(batch) + classes[:, None, None, None].float(), (3, 5), 1.0,
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    values = change(images)[:, 0, 0, 0]
    assert 60 < int((values == 3.0).sum()) < 140
    assert int((values == 5.0).sum()) == 200 - int((values == 3.0).sum())


def test_images_of_the_class_itself_are_left_out_of_its_search() -> None:
    """A trigger that changes nothing: own images are of the class already, and say nothing of it."""
    network, data = Network(Backdoored(), "float32", 1000), clean(30)
    nothing = MaskedTriggers(torch.zeros(2, 1, SIZE, SIZE), torch.zeros(2, 3, SIZE, SIZE))
    classes = torch.tensor([1, TARGET])
    with torch.no_grad():
        loss, hits, asked = _towards(network, nothing, data, classes)
        for row, label in enumerate(classes.tolist()):
            others = data.images[data.labels != label]
            goals = torch.full((len(others),), label)
            expected = nn.functional.cross_entropy(network.logits(others), goals)
            assert float(loss[row]) == pytest.approx(float(expected), rel=1e-5)
    assert (hits.tolist(), asked.tolist()) == ([0, 0], [25, 25])


def test_the_smallest_trigger_that_worked_is_kept() -> None:
    state = _State(2, torch.zeros(1, 3, SIZE, SIZE), 0.1, torch.Generator().manual_seed(0))
    objective, classes = SimpleNamespace(size=lambda triggers: triggers.norms()), torch.arange(2)
    kept = []
    for raw, rates in ((0.0, (0.5, 1.0)), (-1.0, (1.0, 1.0)), (1.0, (1.0, 0.9)), (-2.0, (0.4, 0.2))):
        with torch.no_grad():
            state.mask.fill_(raw)
        state.keep(classes, torch.tensor(rates), 0.9, objective)  # type: ignore[arg-type]
        kept.append(state.found(True).norms / SIZE**2)
    unit = {raw: (np.tanh(raw) + 1) / 2 for raw in (0.0, -1.0, 1.0)}
    expected = [[unit[0.0]] * 2, [unit[-1.0]] * 2, [unit[-1.0]] * 2, [unit[-1.0]] * 2]
    np.testing.assert_allclose(torch.stack(kept).numpy(), expected, rtol=1e-5)
    assert state.rates.tolist() == [1.0, 1.0]


def test_the_success_that_is_asked_for_is_enough() -> None:
    """Of all images too: the cost then rises and the mask shrinks."""
    settings: Any = {**SEARCH, "precision": "float32", "unlearning_epochs": 1}
    result = NeuralCleanse(success=1.0, **settings).run(Backdoored(), clean(), context())
    assert result.details["success_rates"][TARGET] == 1.0
    assert result.details["norms"][TARGET] < 4


def test_a_class_whose_cost_never_rose_is_not_done() -> None:
    schedule = CostSchedule(1, initial=0.1, factor=2.0, patience=2, early_stop=3)
    for success in (True, True, False, False, *[True, False] * 6):  # start, lower, and never two in a row
        schedule.update(torch.tensor([success]), torch.tensor([5.0]))
        assert schedule.active.all()
    assert float(schedule.weights) == pytest.approx(0.1 / 2**1.5)


def test_tabors_settings_reach_its_terms_and_its_score_is_of_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    plain = Search.run

    def run(self: Search, *given: Any) -> Any:
        seen.extend([given[2], plain(self, *given)])
        return seen[-1]

    attack, crop = torch.linspace(0.2, 1.0, CLASSES), torch.linspace(0.9, 0.4, CLASSES)
    monkeypatch.setattr(Search, "run", run)
    monkeypatch.setattr(tabor, "judge", lambda *given: (attack, crop))
    defense = Tabor(
        steps=2, batches_per_step=1, outside=1.0, scatter=2.0, scatter_outside=3.0, blocking=4.0, overlaying=5.0,
        precision="float32", unlearning_epochs=1,
    )  # fmt: skip
    details = defense.run(Backdoored(), clean(), context()).details
    assert seen[0] == Regularisers(outside=1.0, scatter=2.0, scatter_outside=3.0, blocking=4.0, overlaying=5.0)
    np.testing.assert_allclose(details["scores"], score(seen[1].triggers, attack, crop).numpy(), atol=1e-5)
    np.testing.assert_allclose(details["attack_accuracies"], attack.numpy(), atol=1e-5)


def test_own_images_are_no_success_of_an_attack() -> None:
    """Triggers that change nothing send no image of another class anywhere."""
    nothing = MaskedTriggers(torch.zeros(CLASSES, 1, SIZE, SIZE), torch.ones(CLASSES, 3, SIZE, SIZE))
    attack, _ = tabor.judge(Network(Backdoored(), "float32", 7), nothing, clean())
    assert attack.tolist() == [0] * CLASSES


def test_the_cost_weighs_the_objectives_own_size() -> None:
    network = Network(Backdoored().requires_grad_(False), "float32", 1000)
    state = _State(CLASSES, clean().images, 0.1, torch.Generator().manual_seed(0))
    gradients = []
    for size in (lambda triggers: 0 * triggers.norms(), lambda triggers: triggers.patterns.sum((1, 2, 3))):
        zero = lambda network, triggers, batch, classes: torch.zeros(len(classes))  # noqa: E731
        step = _descent(network, state, SimpleNamespace(size=size, extra=zero), context())  # type: ignore[arg-type]
        state.pattern.grad = state.mask.grad = None
        step(*clean(12), torch.arange(CLASSES), torch.full((CLASSES,), 2.0))
        gradients.append((state.mask.grad.clone(), state.pattern.grad.clone()))  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    slope = (1 - torch.tanh(state.pattern.detach()).square()) / 2
    torch.testing.assert_close(gradients[1][1] - gradients[0][1], 2.0 * slope, rtol=1e-4, atol=1e-6)


class TestNewDeepInspect:
    """Its loss against the formula; what a class is judged on."""

    def test_loss(self) -> None:
        defense = DeepInspect(gan_weight=0.5, size_weight=7.0, free_size=0.2, precision="float32")
        fake, network = clean(6).images, Network(Backdoored(), "float32", 100)
        triggers = torch.linspace(-0.1, 0.6, 6).view(6, 1, 1, 1).expand(6, 3, SIZE, SIZE)
        critic, goals = torch.linspace(-1, 2, 6), torch.arange(6).flip(0)
        with torch.no_grad():
            found = defense._losses(SimpleNamespace(critic=lambda images: critic), network, fake, triggers, goals)  # type: ignore[arg-type]
            entropy = nn.functional.cross_entropy(network.logits(fake), goals, reduction="none")
        norms = triggers[:, 0, 0, 0].abs()
        expected = entropy + 7 * (norms - 0.2).clamp(min=0) + 0.5 * (critic - 1).square()
        torch.testing.assert_close(found.total, expected)
        torch.testing.assert_close(found.norm, norms)

    def test_the_score_is_the_whole_loss(self) -> None:
        defense = DeepInspect(gan_weight=0.0, size_weight=7.0, epochs=1, precision="float32", unlearning_epochs=1)
        details = defense.run(Backdoored(), clean(), context()).details
        expected = np.array(details["trigger_losses"]) + 7 * np.array(details["norms"])
        np.testing.assert_allclose(details["scores"], expected, rtol=1e-4)

    def test_a_class_is_judged_on_images_of_others(self) -> None:
        nothing = SimpleNamespace(triggers=lambda goals: torch.zeros(len(goals), 3, SIZE, SIZE))
        network = Network(Backdoored(), "float32", 1000)
        judged = DeepInspect(gan_weight=0.0)._judge(nothing, network, clean(), CLASSES)  # type: ignore[arg-type]
        assert judged.success.tolist() == [0] * CLASSES

    def test_the_critic_learns_to_tell_clean_from_triggered(self) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        gan = Gan(TriggerGenerator(CLASSES, (3, SIZE, SIZE), 8, 8), Critic(3, 8), generator)
        network = Network(Backdoored().requires_grad_(False), "float32", 1000)
        DeepInspect(epochs=10, size_weight=0.0, noise=8, width=8, precision="float32")._train(
            gan, network, clean(), context()
        )
        with torch.no_grad():
            real, goals = clean().images, clean().labels
            fake = (real + gan.triggers(goals)).clamp(0, 1)
            assert float(gan.critic(real).mean()) > float(gan.critic(fake).mean()) + 0.2
