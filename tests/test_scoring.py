"""Scores against an oracle written image by image, and against formulas written out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters.attacks import AllToAll, AllToOne, build
from adapters.errors import UserError
from adapters.protocols import ImageTensors, LabelledImages, LabelMap, Trigger
from bench.intervals import absolute, newcombe, wilson
from bench.scoring import Outcomes, Scorer, Scores, der, evaluating, predict
from bench.splits import split_test

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)
light = settings(max_examples=25)
Attacks = list[tuple[Trigger, LabelMap]]


def made(count: int = 60, classes: int = 4, seed: int = 0) -> ImageTensors:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    part = LabelledImages(images, labels)
    return ImageTensors("made", part, part, tuple("abcdefgh"[:classes]), count // 3)


def random_model(seed: int, classes: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, classes))


def attack_list(kind: str) -> Attacks:
    single: Attacks = [(build("badnets", SHAPE, 0), AllToOne(1))]
    if kind == "all_to_all":
        return [(build("badnets", SHAPE, 0), AllToAll(4))]
    return single if kind == "one" else [*single, (build("blend", SHAPE, 0), AllToOne(2))]


def oracle(model: nn.Module, data: ImageTensors, indices: list[int], attacks: Attacks) -> tuple[float, float, float]:
    """ACC, ASR and RA, one image at a time."""
    images, labels = data.test.images.numpy().astype(np.float32) / 255, data.test.labels.numpy()

    def label_of(image: Tensor) -> int:
        with torch.no_grad():
            return int(np.argmax(model(image[None]).numpy()[0]))

    model.eval()
    correct = [label_of(torch.from_numpy(images[k])) == labels[k] for k in indices]
    asrs, ras = [], []
    for trigger, mapping in attacks:
        hits, restored = [], []
        for k in indices:
            goal = mapping.target if isinstance(mapping, AllToOne) else (labels[k] + 1) % 4
            if labels[k] == goal:
                continue
            guess = label_of(trigger(torch.from_numpy(images[k : k + 1]))[0])
            hits.append(guess == goal)
            restored.append(guess == labels[k])
        asrs.append(np.mean(hits))
        ras.append(np.mean(restored))
    return float(np.mean(correct)), float(np.mean(asrs)), float(np.mean(ras))


@light
@given(kind=st.sampled_from(["one", "two", "all_to_all"]), seed=st.integers(0, 999))
def test_scores_match_the_oracle(kind: str, seed: int) -> None:
    data, model, attacks = made(seed=seed), random_model(seed), attack_list(kind)
    split = split_test(data, seed)
    scores = Scorer(data, split, attacks, CPU).score(model)
    assert (scores.acc, scores.asr, scores.ra) == pytest.approx(
        oracle(model, data, split.scoring_indices.tolist(), attacks)
    )
    assert scores.clean_count == 40
    labels = data.test.labels[split.scoring_indices]
    counts = [40 if kind == "all_to_all" else int((labels != m.target).sum()) for _, m in attacks]  # type: ignore[attr-defined]
    assert scores.triggered_count == pytest.approx(np.mean(counts))
    assert scores.asr_interval == wilson(scores.asr, scores.triggered_count)
    assert [name for name, *_ in scores.per_trigger] == [trigger.name for trigger, _ in attacks]
    for value, (low, high) in (
        (scores.acc, scores.acc_interval),
        (scores.asr, scores.asr_interval),
        (scores.ra, scores.ra_interval),
    ):
        assert 0 <= low <= value <= high <= 1


@light
@given(kind=st.sampled_from(["one", "two", "all_to_all"]), seed=st.integers(0, 999), count=st.integers(1, 60))
def test_a_sample_has_every_class_in_proportion_and_scores_its_images(kind: str, seed: int, count: int) -> None:
    data, model, attacks = made(seed=seed), random_model(seed), attack_list(kind)
    split = split_test(data, seed)
    scorer = Scorer(data, split, attacks, CPU)
    sample, index = scorer.sample(count)
    labels = data.test.labels[split.scoring_indices]
    step = max(1, -(-len(labels) // count))
    sizes, taken = (torch.bincount(x, minlength=4) for x in (labels, labels[index]))
    assert torch.equal(taken, (sizes + step - 1) // step)
    scores = sample.score(model)
    assert (scores.acc, scores.asr, scores.ra) == pytest.approx(
        oracle(model, data, split.scoring_indices[index].tolist(), attacks)
    )
    assert scores == Scores.of(scorer.score(model).outcomes.at(index), scorer.names)
    assert torch.equal(sample.index, split.scoring_indices[index])
    assert sample.identity == scorer.identity != scorer.sample(count, torch.bfloat16)[0].identity


@light
@given(kind=st.sampled_from(["one", "two", "all_to_all"]), seed=st.integers(0, 999), size=st.integers(1, 20))
def test_error_gap_matches_the_oracle(kind: str, seed: int, size: int) -> None:
    data, model, attacks = made(seed=seed), random_model(seed), attack_list(kind)
    split = split_test(data, seed)
    scorer = Scorer(data, split, attacks, CPU)
    chosen = split.pool_indices[:size]
    clean = LabelledImages(data.test.images[chosen], data.test.labels[chosen])
    gap = scorer.error_gap(model, clean)
    if any(not mapping.is_poisonable(clean.labels).any() for _, mapping in attacks):
        assert gap is None
        return
    assert gap is not None
    clean_ra = oracle(model, data, chosen.tolist(), attacks)[2]
    test_ra = oracle(model, data, split.scoring_indices.tolist(), attacks)[2]
    assert gap.value == pytest.approx(abs(clean_ra - test_ra), abs=1e-6)
    assert gap.interval[0] - 1e-9 <= gap.value <= gap.interval[1] + 1e-9
    as_float = LabelledImages(clean.images.float() / 255, clean.labels)
    assert scorer.error_gap(model, as_float, scorer.score(model)) == gap


def test_modes_and_gradients_are_left_as_found() -> None:
    data, model = made(), random_model(0)
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Scorer(data, split_test(data, 0), attack_list("two"), CPU).score(model)
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="boom"), evaluating(model):
        raise RuntimeError("boom")
    assert model.training


def test_a_model_of_nans_succeeds_at_nothing() -> None:
    model = random_model(0)
    with torch.no_grad():
        model[-1].bias.fill_(float("nan"))  # argmax over NaN is label 0
    data = made()
    scores = Scorer(data, split_test(data, 0), [(build("badnets", SHAPE, 0), AllToOne(0))], CPU).score(model)
    assert (scores.acc, scores.asr, scores.ra) == (0, 0, 0)


def test_no_countable_image_is_an_error() -> None:
    data = made()
    one = ImageTensors("made", data.train, LabelledImages(data.test.images, data.test.labels * 0), ("a", "b"), 20)
    with pytest.raises(UserError, match="none of the 40 scoring images of 'made' lies outside the target class"):
        Scorer(one, split_test(one, 0), [(build("badnets", SHAPE, 0), AllToOne(0))], CPU)


def test_predict_batches_and_selects() -> None:
    model, images = random_model(1).eval(), made(300).test.images
    with torch.no_grad():
        expected = model(images / 255).argmax(1)
        assert torch.equal(predict(model, images), expected)
        index = torch.tensor([5, 1, 299])
        assert torch.equal(predict(model, images, index=index), expected[index])
        assert predict(model, images[:0]).shape == (0,)


def test_identity_tells_apart_what_outcomes_depend_on() -> None:
    """And not the splits: what a model makes of an image does not depend on which others it is scored on."""
    data = made()
    ids = {
        Scorer(data, split_test(data, 0), attack_list("one"), CPU).identity,
        Scorer(made(seed=1), split_test(data, 0), attack_list("one"), CPU).identity,
        Scorer(data, split_test(data, 0), attack_list("two"), CPU).identity,
        Scorer(data, split_test(data, 0), [(build("badnets", SHAPE, 0), AllToOne(2))], CPU).identity,
        Scorer(data, split_test(data, 0), attack_list("all_to_all"), CPU).identity,
    }
    assert len(ids) == 5
    assert Scorer(data, split_test(data, 1), attack_list("one"), CPU).identity in ids


def outcomes_of(rng: np.random.Generator, count: int, triggers: int, accuracy: float, success: float) -> Outcomes:
    counted = np.random.default_rng(0).random((triggers, count)) < 0.9
    counted[:, 0] = True
    hit = counted & (rng.random((triggers, count)) < success)
    return Outcomes(rng.random(count) < accuracy, counted, hit, counted & ~hit)


@light
@given(count=st.integers(1, 70), triggers=st.integers(1, 3), seed=st.integers(0, 99))
def test_outcomes_survive_packing(count: int, triggers: int, seed: int) -> None:
    outcomes = outcomes_of(np.random.default_rng(seed), count, triggers, 0.5, 0.5)
    back = Outcomes.unpack(json.loads(json.dumps(outcomes.pack())))
    for name in ("correct", "counted", "hit", "restored"):
        assert np.array_equal(getattr(back, name), getattr(outcomes, name))


@pytest.mark.parametrize(
    "packed", [{}, {"shape": [4, 9], "bits": ""}, {"shape": [4, 9], "bits": "§"}, {"shape": [5, 8], "bits": "AAAAAAA="}]
)
def test_damaged_outcomes_are_refused(packed: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError)):
        Outcomes.unpack(packed)


@light
@given(
    triggers=st.integers(1, 3),
    seed=st.integers(0, 99),
    shares=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_der_is_the_formula_inside_its_interval(triggers: int, seed: int, shares: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    names = [str(k) for k in range(triggers)]
    before = Scores.of(outcomes_of(rng, 200, triggers, shares[0], shares[1]), names)
    after = Scores.of(outcomes_of(rng, 200, triggers, shares[2], shares[3]), names)
    rating = der(before, after)
    expected = (max(0, before.asr - after.asr) - max(0, before.acc - after.acc) + 1) / 2
    assert rating.value == pytest.approx(expected)
    assert 0 <= rating.interval[0] <= rating.value <= rating.interval[1] <= 1
    assert der(before, after) == rating, "the bootstrap has its own seed"


def test_der_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(1)
    old, new = outcomes_of(rng, 400, 2, 0.9, 0.95), outcomes_of(rng, 400, 2, 0.8, 0.4)
    ratings = []
    for _ in range(2000):
        draw = rng.integers(0, 400, 400)
        asr = [(one.hit[:, draw].sum(axis=1) / one.counted[:, draw].sum(axis=1)).mean() for one in (old, new)]
        drop = old.correct[draw].mean() - new.correct[draw].mean()
        ratings.append((max(0, asr[0] - asr[1]) - max(0, drop) + 1) / 2)
    interval = der(Scores.of(old, ["a", "b"]), Scores.of(new, ["a", "b"])).interval
    # Two bootstraps of 2,000 and 4,000 resamples: their quantiles differ by about a tenth of the standard error.
    assert interval == pytest.approx(tuple(np.quantile(ratings, [0.025, 0.975])), abs=0.004)


def test_der_compares_only_the_same_images() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="expected two scores of one scorer"):
        der(Scores.of(outcomes_of(rng, 9, 1, 1, 1), ["a"]), Scores.of(outcomes_of(rng, 8, 1, 1, 1), ["a"]))


def test_wilson_by_its_defining_equation() -> None:
    """The limits p solve |share - p| = z sqrt(p (1 - p) / n)."""
    for share, count in ((0.5, 10), (0.0, 10), (1.0, 37), (0.93, 4600)):
        for limit in wilson(share, count):
            if 0 < limit < 1:
                assert abs(share - limit) == pytest.approx(1.959963985 * math.sqrt(limit * (1 - limit) / count))
    assert wilson(0.0, 10) == pytest.approx((0, 0.277533), abs=1e-6)  # Brown, Cai and DasGupta (2001)
    assert wilson(1.0, 10) == pytest.approx((0.722467, 1), abs=1e-6)
    with pytest.raises(ValueError, match="expected at least one image"):
        wilson(0.5, 0)


def test_newcombe_against_his_paper() -> None:
    """Newcombe (1998), table II, method 10."""
    assert newcombe(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(9 / 10, 10, 3 / 10, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert newcombe(10 / 10, 10, 0 / 10, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)
    assert newcombe(0 / 10, 10, 0 / 20, 20) == pytest.approx((-0.1611, 0.2775), abs=5e-5)


@light
@given(st.floats(-1, 1), st.floats(-1, 1))
def test_absolute_interval(first: float, second: float) -> None:
    low, high = sorted((first, second))
    image = np.abs(np.linspace(low, high, 2001))
    assert absolute((low, high)) == pytest.approx((image.min(), image.max()), abs=1e-3)


def test_identity_tells_two_triggers_of_one_target_apart() -> None:
    data = made()
    split = split_test(data, 0)
    blend, badnets = ([(build(name, SHAPE, 0), AllToOne(1))] for name in ("blend", "badnets"))
    assert Scorer(data, split, blend, CPU).identity != Scorer(data, split, badnets, CPU).identity


def test_the_interval_of_the_error_gap_is_newcombes_of_both_counts() -> None:
    data, model, attacks = made(), random_model(0), attack_list("one")
    split = split_test(data, 0)
    scorer = Scorer(data, split, attacks, CPU)
    chosen = split.pool_indices[:7]
    clean = LabelledImages(data.test.images[chosen], data.test.labels[chosen])
    gap, scores = scorer.error_gap(model, clean), scorer.score(model)
    assert gap is not None
    error = 1 - oracle(model, data, chosen.tolist(), attacks)[2]
    counts = int((clean.labels != 1).sum()), scores.triggered_count
    assert gap.interval == pytest.approx(absolute(newcombe(error, counts[0], 1 - scores.ra, counts[1])), abs=1e-6)
