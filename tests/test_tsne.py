"""Figure 5: the features, their layout, the share of triggered images among their own class, the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cells import record
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from adapters import attacks
from adapters.models import SimplifiedVGG
from adapters.protocols import ImageTensors, LabelledImages
from bench import tsne
from bench.records import Record, RecordStore
from bench.report import build
from bench.scoring import Scorer
from bench.splits import split_test

CLASSES, SIDE = 3, 8


def _data(count: int = 60) -> ImageTensors:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, 60, (count, 3, SIDE, SIDE), generator=generator) + 60 * labels[:, None, None, None]
    part = LabelledImages(images.to(torch.uint8), labels)
    return ImageTensors("made", part, part, tuple("abc"), pool_size=count // 3)


def _scorer(*targets: int) -> Scorer:
    data = _data()
    names = ("badnets", "blend")
    used = [
        (attacks.build(name, data.image_shape, 0), attacks.label_map(target, CLASSES))
        for name, target in zip(names, targets, strict=False)
    ]
    return Scorer(data, split_test(data, 0), used, torch.device("cpu"))


class Small(nn.Module):
    """One hidden layer of four."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hidden, self.last = nn.Linear(3 * SIDE * SIDE, 4), nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(self.hidden(images.flatten(1)).tanh())
        return found


def test_the_features_are_the_input_of_the_last_layer() -> None:
    model, images = Small(0), torch.rand(7, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = model.hidden(images.flatten(1)).tanh()
    assert np.array_equal(tsne.features(model, images), expected.double().numpy())
    assert not list(model.last._forward_pre_hooks)


def test_the_papers_network_has_2048_features() -> None:
    model, images = SimplifiedVGG(10).eval(), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = model.features(images).flatten(1)
    assert tsne.features(model, images).shape == (3, 2048)
    assert np.array_equal(tsne.features(model, images), expected.double().numpy())


def test_the_layout_is_a_function_of_its_seed_and_names_every_image() -> None:
    scorer, models = _scorer(1, 2), (Small(0), Small(1))
    first, second = (tsne.lay_out(models, scorer, 30, 5) for _ in range(2))
    assert first == second
    other = tsne.lay_out(models, scorer, 30, 6)
    assert other.before != first.before
    counts = np.bincount(first.triggered)
    labels, triggered = np.array(first.labels), np.array(first.triggered)
    clean = labels[triggered == 0]
    assert counts[0] == 30
    assert counts[1] == (clean != 1).sum()
    assert counts[2] == (clean != 2).sum()
    assert not (labels[triggered == 1] == 1).any()
    assert len(first.before) == len(first.after) == len(first.labels) == counts.sum()
    assert np.isfinite(first.before).all()
    assert np.isfinite(first.after).all()


def test_a_model_that_diverged_and_one_without_a_trigger_are_laid_out_too() -> None:
    broken = Small(0)
    with torch.no_grad():
        broken.hidden.weight.fill_(float("nan"))
    found = tsne.lay_out((Small(0), broken), _scorer(), 30, 0)
    assert set(found.after) == {(0.0, 0.0)}
    assert set(found.triggered) == {0}
    assert (found.restored_before, found.restored_after) == (None, None)


HUGE = np.finfo(np.float64).max


@given(
    arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.floats(-HUGE, HUGE)),
    st.floats(0.001, 1000),
)
def test_scaling_keeps_who_is_near_whom(found: Any, factor: float) -> None:
    scaled = tsne.tidy(found)
    assert scaled.shape == (len(found), max(2, found.shape[1]))
    assert np.isfinite(scaled).all()
    assert np.abs(scaled).max() <= 1
    moderate = found / HUGE
    if np.ptp(moderate, axis=0).max() > 1e-6:
        assert np.abs(scaled).max() == pytest.approx(1)
        assert np.allclose(tsne.tidy(moderate * factor + 3), tsne.tidy(moderate), atol=1e-6)


def test_what_is_no_number_counts_as_zero() -> None:
    rows = np.array([[np.nan, 1.0], [np.inf, 3.0], [-np.inf, 2.0]])
    assert np.allclose(tsne.tidy(rows), [[0, -1], [0, 1], [0, 0]])


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(0, 20))
def test_the_share_counts_images_among_their_own_class(seed: int, moved: int) -> None:
    """Two classes far apart, twelve clean images each; ``moved`` of twenty triggered ones lie at the other class."""
    generator = np.random.default_rng(seed)
    clean_labels = np.arange(24) % 2
    source = generator.integers(0, 24, 20)
    labels = np.concatenate([clean_labels, clean_labels[source]])
    place = labels * 100.0
    place[24 : 24 + moved] = 100.0 - place[24 : 24 + moved]
    found = np.stack([place, np.zeros(44)], axis=1) + generator.normal(0, 1, (44, 2))
    triggered = np.arange(44) >= 24
    share = tsne.restored_share(found, labels, np.concatenate([np.arange(24), source]), triggered)
    assert share == pytest.approx(1 - moved / 20)


def test_an_images_own_clean_version_does_not_count() -> None:
    """Nine neighbours of class 1, its own clean version of class 0 nearest of all."""
    found = np.array([[0.0], *[[1.0 + k / 100] for k in range(9)], [0.0]])
    labels, source = np.array([0, *[1] * 9, 0]), np.array([*range(10), 0])
    assert tsne.restored_share(found, labels, source, np.arange(11) >= 10) == 0.0


def test_the_report_draws_the_layouts_of_a_record(tmp_path: Path) -> None:
    made = record("none").model_copy(update={"tsne": tsne.lay_out((Small(0), Small(1)), _scorer(1), 30, 5)})
    assert Record.model_validate_json(made.line()) == made
    RecordStore(tmp_path).append(made)
    build(tmp_path, ["html"])
    (drawn,) = (tmp_path / "plots").glob("*tsne-1.svg")
    assert all(text in drawn.read_text() for text in ("before the defense", "after it"))
