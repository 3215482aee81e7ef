"""Poisoning: exact to the image, and nothing else moves."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.attacks import AllToAll, AllToOne, CleanLabel, build, poison, poison_copies, poison_count
from adapters.errors import UserError
from adapters.protocols import LabelledImages, LabelMap

light = settings(max_examples=20)
SHAPE = (3, 8, 8)


def training_set(count: int = 80, classes: int = 4, seed: int = 0) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(
        0, 200, (count, *SHAPE), dtype=torch.uint8, generator=generator
    )  # never white: badnets shows
    return LabelledImages(images, torch.randint(0, classes, (count,), generator=generator))


@light
@given(
    name=st.sampled_from(["badnets", "blend"]),
    mapping=st.sampled_from([AllToOne(1), AllToAll(4)]),
    ratio=st.floats(0.02, 0.5),
    seed=st.integers(0, 99),
)
def test_exactly_the_chosen_images_change(name: str, mapping: LabelMap, ratio: float, seed: int) -> None:
    train = training_set(seed=seed)
    before = LabelledImages(train.images.clone(), train.labels.clone())
    trigger = build(name, SHAPE, 0)
    out = poison(train, [(trigger, mapping)], ratio, seed)
    assert torch.equal(train.images, before.images)
    assert torch.equal(train.labels, before.labels)
    changed = (out.images != train.images).flatten(1).any(dim=1)
    assert torch.equal(changed.nonzero().squeeze(1), out.indices)
    assert torch.equal((out.labels != train.labels).nonzero().squeeze(1), out.indices)
    assert len(out.indices) == round(ratio * 80) == poison_count(train.labels, mapping, ratio)
    assert out.images.dtype == torch.uint8
    expected = (trigger(train.images[out.indices].float() / 255) * 255).round().to(torch.uint8)
    assert torch.equal(out.images[out.indices], expected)
    assert torch.equal(out.labels[out.indices], mapping(train.labels[out.indices]))
    assert mapping.is_poisonable(train.labels[out.indices]).all()
    again = poison(train, [(trigger, mapping)], ratio, seed)
    assert torch.equal(again.images, out.images)
    assert torch.equal(again.labels, out.labels)


def test_larger_ratio_poisons_the_same_images_and_more() -> None:
    attacks = [(build("badnets", SHAPE, 0), AllToOne(0))]
    few, many = (poison(training_set(), attacks, ratio, 3).indices for ratio in (0.1, 0.4))
    assert torch.isin(few, many).all()
    assert not torch.equal(few, poison(training_set(), attacks, 0.1, 4).indices)


@light
@given(seed=st.integers(0, 99), ratio=st.floats(0.02, 0.25))
def test_several_triggers_never_share_an_image(seed: int, ratio: float) -> None:
    train = training_set(seed=seed)
    attacks = [(build("badnets", SHAPE, 0), AllToOne(1)), (build("blend", SHAPE, 0), AllToOne(2))]
    out = poison(train, attacks, ratio, seed)
    assert len(out.indices.unique()) == len(out.indices) == 2 * round(ratio * 80)
    for row, (trigger, mapping) in enumerate(attacks):
        mine = out.indices[out.source == row]
        assert len(mine) == round(ratio * 80)
        assert torch.equal(out.labels[mine], mapping(train.labels[mine]))
        expected = (trigger(train.images[mine].float() / 255) * 255).round().to(torch.uint8)
        assert torch.equal(out.images[mine], expected)


@light
@given(seed=st.integers(0, 99), ratio=st.floats(0.02, 0.6), triggers=st.integers(1, 3))
def test_united_copies_are_the_copies_they_stand_for(seed: int, ratio: float, triggers: int) -> None:
    """Each copy is the training set with exactly its share poisoned, by its own trigger; held once, not T times."""
    train = training_set(seed=seed)
    before = train.images.clone()
    every = [
        (build("badnets", SHAPE, 0), AllToOne(1)),
        (build("blend", SHAPE, 0), AllToOne(2)),
        (lambda images: 1 - images, AllToAll(4)),
    ][:triggers]
    out = poison_copies(train, every, ratio, seed)
    count = round(ratio * 80)
    assert torch.equal(train.images, before)
    assert len(out.images) == 80 + triggers * count, "each image is stored once"
    assert len(out.rows) == len(out.labels) == 80 * triggers
    assert len(out.indices.unique()) == len(out.indices) == triggers * count
    assert torch.equal(out.indices, out.indices.sort().values)
    shown = out.images[out.rows].view(triggers, 80, *SHAPE)
    labels = out.labels.view(triggers, 80)
    for copy, (trigger, mapping) in enumerate(every):
        mine = out.indices[out.source == copy] - 80 * copy
        assert len(mine) == count
        changed = (shown[copy] != train.images).flatten(1).any(dim=1)
        assert set(changed.nonzero().squeeze(1).tolist()) <= set(mine.tolist())
        expected = (trigger(train.images[mine].float() / 255) * 255).round().to(torch.uint8)
        assert torch.equal(shown[copy, mine], expected)
        assert torch.equal((labels[copy] != train.labels).nonzero().squeeze(1), mine)
        assert torch.equal(labels[copy, mine], mapping(train.labels[mine]))
    again = poison_copies(train, every, ratio, seed)
    assert all(torch.equal(one, other) for one, other in zip(out, again, strict=True))


@light
@given(ratio=st.floats(0.02, 0.12), seed=st.integers(0, 99))
def test_clean_label_changes_images_of_the_target_class_and_no_label(ratio: float, seed: int) -> None:
    train = training_set(seed=seed)
    out = poison(train, [(build("badnets", SHAPE, 0), CleanLabel(1))], ratio, seed)
    assert torch.equal(out.labels, train.labels)
    changed = (out.images != train.images).flatten(1).any(dim=1)
    assert torch.equal(changed.nonzero().squeeze(1), out.indices)
    assert len(out.indices) == round(ratio * 80)
    assert (train.labels[out.indices] == 1).all()


def test_clean_label_can_poison_no_more_than_its_class() -> None:
    labels = torch.arange(40) % 4
    assert poison_count(labels, CleanLabel(1), 0.25) == 10
    with pytest.raises(UserError, match=r"expected at most 0.25 \(10 images are of the target class\)"):
        poison_count(labels, CleanLabel(1), 0.3)


def test_one_copy_is_the_plain_setting() -> None:
    attacks = [(build("badnets", SHAPE, 0), AllToOne(0))]
    plain, copies = poison(training_set(), attacks, 0.3, 5), poison_copies(training_set(), attacks, 0.3, 5)
    assert torch.equal(copies.images[copies.rows], plain.images[plain.rows])
    assert torch.equal(copies.labels, plain.labels)
    assert torch.equal(copies.indices, plain.indices)


def test_each_copy_may_poison_what_is_attainable_alone() -> None:
    train = LabelledImages(training_set(40).images, torch.arange(40) % 4)
    attacks = [(build("badnets", SHAPE, 0), AllToOne(1)), (build("blend", SHAPE, 0), AllToOne(2))]
    assert len(poison_copies(train, attacks, 0.75, 0).indices) == 60
    with pytest.raises(UserError, match=r"expected at most 0.375 for each of 2 triggers"):
        poison(train, attacks, 0.75, 0)
    with pytest.raises(UserError, match=r"cell.poison_ratio: found 0.8, 32 of 40 .*expected at most 0.75 \(30"):
        poison_copies(train, attacks, 0.8, 0)


def test_unattainable_ratios_say_what_is_attainable() -> None:
    labels = torch.arange(40) % 4
    with pytest.raises(UserError, match=r"cell.poison_ratio: found 0.9, 36 of 40 .*expected at most 0.75 \(30 images"):
        poison_count(labels, AllToOne(2), 0.9)
    assert poison_count(labels, AllToOne(2), 0.75) == 30
    assert poison_count(labels, AllToAll(4), 0.99) == 40
    with pytest.raises(UserError, match=r"at most 0.375 for each of 2 triggers"):
        poison_count(labels, [AllToOne(1), AllToOne(2)], 0.4)
    with pytest.raises(UserError, match=r"found 0.01, less than one of 40 training images; expected at least 0.025"):
        poison_count(labels, AllToOne(2), 0.01)
    with pytest.raises(UserError, match=r"expected at most 0 "):
        poison_count(torch.zeros(5, dtype=torch.int64), AllToOne(0), 0.2)


def test_the_ratio_that_an_error_recommends_is_attainable() -> None:
    labels = torch.arange(30_000) % 3
    with pytest.raises(UserError, match=r"expected at most 0.6666 ") as caught:
        poison_count(labels, AllToOne(0), 0.7)
    told = re.search(r"at most ([\d.]+)", str(caught.value))
    assert told
    assert poison_count(labels, AllToOne(0), float(told[1])) == 19_998


def test_attainable_maximum_is_reached() -> None:
    train = LabelledImages(training_set(40).images, torch.arange(40) % 4)
    attacks = [(build("badnets", SHAPE, 0), AllToOne(1)), (build("blend", SHAPE, 0), AllToOne(2))]
    for seed in range(20):
        assert len(poison(train, attacks, 0.375, seed).indices) == 30


def test_global_random_state_plays_no_part() -> None:
    attacks = [(build("blend", SHAPE, 0), AllToOne(0))]
    state = torch.get_rng_state()
    first = poison(training_set(), attacks, 0.2, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(first.images, poison(training_set(), attacks, 0.2, 5).images)
