"""Splits: disjoint, complete, seeded, stratified; clean sets nested."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import UserError
from adapters.protocols import ImageTensors, LabelledImages
from bench.splits import clean_indices, split_test

light = settings(max_examples=40)


def data_of(labels: torch.Tensor, pool_size: int, classes: int) -> ImageTensors:
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    names = tuple(str(k) for k in range(classes))
    return ImageTensors("made", LabelledImages(images, labels), LabelledImages(images, labels), names, pool_size)


@st.composite
def made(draw: st.DrawFn) -> ImageTensors:
    classes = draw(st.integers(1, 8))
    labels = torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=2, max_size=120)))
    return data_of(labels, draw(st.integers(1, len(labels) - 1)), classes)


@light
@given(data=made(), seed=st.integers(0, 2**63 - 1))
def test_split_is_a_stratified_partition(data: ImageTensors, seed: int) -> None:
    split = split_test(data, seed)
    everything = torch.cat([split.pool_indices, split.scoring_indices])
    assert torch.equal(everything.sort().values, torch.arange(len(data.test.labels)))
    assert len(split.pool_indices) == data.pool_size
    sizes = torch.bincount(data.test.labels, minlength=data.num_classes)
    exact = sizes * data.pool_size / len(data.test.labels)
    pool = torch.bincount(data.test.labels[split.pool_indices], minlength=data.num_classes)
    assert ((pool - exact).abs() < 1 + 1e-6).all()
    again = split_test(data, seed)
    assert torch.equal(again.pool_indices, split.pool_indices)


@light
@given(data=made(), seed=st.integers(0, 99))
def test_clean_sets_are_nested_and_stratified(data: ImageTensors, seed: int) -> None:
    split = split_test(data, seed)
    labels = data.test.labels[split.pool_indices]
    quotas = torch.bincount(labels, minlength=data.num_classes)
    present = int((quotas > 0).sum())
    for size in range(1, data.pool_size + 1):
        chosen = clean_indices(split, size)
        assert len(chosen.unique()) == size
        assert torch.equal(chosen, split.pool_indices[:size])
        counts = torch.bincount(data.test.labels[chosen], minlength=data.num_classes)
        assert int((counts > 0).sum()) == min(size, present) or size > present
        if size >= present:
            assert (counts[quotas > 0] >= 1).all()


def test_balanced_pool_gives_balanced_clean_sets() -> None:
    data = data_of(torch.arange(1000) % 10, 500, 10)
    split = split_test(data, 3)
    for size in (10, 50, 100, 250):
        counts = torch.bincount(data.test.labels[clean_indices(split, size)], minlength=10)
        assert (counts - size / 10).abs().max() <= 1.5


def test_rare_classes_keep_their_share() -> None:
    labels = torch.cat([torch.zeros(900, dtype=torch.int64), torch.ones(90, dtype=torch.int64), torch.full((10,), 2)])
    split = split_test(data_of(labels, 500, 3), 0)
    assert torch.bincount(labels[split.pool_indices]).tolist() == [450, 45, 5]
    counts = torch.bincount(labels[clean_indices(split, 100)], minlength=3)
    assert (counts - torch.tensor([90.0, 9.0, 1.0])).abs().max() <= 1.5


def test_other_seeds_split_otherwise() -> None:
    data = data_of(torch.arange(200) % 4, 100, 4)
    first, second = split_test(data, 1), split_test(data, 2)
    assert set(first.pool_indices.tolist()) != set(second.pool_indices.tolist())


@pytest.mark.parametrize("size", [0, -3, 451, 600])
def test_clean_size_out_of_range(size: int) -> None:
    split = split_test(data_of(torch.arange(850) % 10, 450, 10), 0)
    with pytest.raises(UserError, match=rf"cell.clean_size: found {size}; expected at least 1 and at most 450"):
        clean_indices(split, size)


@pytest.mark.parametrize("pool_size", [0, 40, 41])
def test_pool_that_leaves_nothing(pool_size: int) -> None:
    with pytest.raises(UserError, match=r"cell.dataset: 'made' has 40 test images"):
        split_test(data_of(torch.arange(40) % 4, pool_size, 4), 0)


def test_which_class_comes_first_is_drawn() -> None:
    data = data_of(torch.arange(200) % 4, 100, 4)
    pools = [split_test(data, seed).pool_indices for seed in range(20)]
    assert {int(data.test.labels[pool[0]]) for pool in pools} == {0, 1, 2, 3}
    assert len({tuple(data.test.labels[pool[:4]].tolist()) for pool in pools}) > 4
