"""What models made of test images is kept image by image: each is scored once, whatever splits it is in."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import data
from torch import nn

from adapters.attacks import AllToAll, AllToOne, build
from adapters.protocols import ImageTensors, LabelledImages, LabelMap, Trigger
from bench.kept_scores import KeptOutcomes, ScoreStore
from bench.scoring import Scorer
from bench.splits import split_test

CPU = torch.device("cpu")
IMAGES = data()


def triggers(kind: str) -> list[tuple[Trigger, LabelMap]]:
    first, second = (build(name, IMAGES.image_shape, 0) for name in ("badnets", "blend"))
    one: tuple[Trigger, LabelMap] = (first, AllToOne(1))
    return {"none": [], "one": [one], "two": [one, (second, AllToOne(2))], "all_to_all": [(first, AllToAll(3))]}[kind]


def random_model(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))


def scorer(kind: str, seed: int, images: ImageTensors = IMAGES) -> Scorer:
    return Scorer(images, split_test(images, seed), triggers(kind), CPU)


@pytest.mark.parametrize("kind", ["none", "one", "two", "all_to_all"])
def test_each_image_is_scored_once_whatever_the_split(tmp_path: Path, scored: list[int], kind: str) -> None:
    model, splits = random_model(0), [0, 1, 0, 2, 3, 1]
    expected = [scorer(kind, seed).score(model) for seed in splits]
    scored.clear()
    for seed, scores in zip(splits, expected, strict=True):
        found = ScoreStore(tmp_path).scores("name", "sha", model, scorer(kind, seed))
        assert repr(found) == repr(scores), "of a clean model ASR is NaN, which equals nothing"
        for mine, theirs in zip(vars(found.outcomes).values(), vars(scores.outcomes).values(), strict=True):
            assert (mine == theirs).all()
    wanted = {one for seed in splits for one in split_test(IMAGES, seed).scoring_indices.tolist()}
    assert sorted(scored) == sorted(wanted)


@settings(max_examples=20)
@given(seeds=st.lists(st.integers(0, 9), max_size=4), kind=st.sampled_from(["none", "one", "two"]))
def test_packed_outcomes_are_the_same_unpacked(seeds: list[int], kind: str) -> None:
    kept, model = KeptOutcomes.none(scorer(kind, 0)), random_model(1)
    for seed in seeds:
        kept = kept.completed(scorer(kind, seed), model)
        assert not len(kept.lacking(scorer(kind, seed)))
    again = KeptOutcomes.unpack(json.loads(json.dumps(kept.pack())), scorer(kind, 5))
    assert (again.scored == kept.scored).all()
    for mine, theirs in zip(vars(again.outcomes).values(), vars(kept.outcomes).values(), strict=True):
        assert (mine == theirs).all()


def test_others_do_not_count(tmp_path: Path, scored: list[int]) -> None:
    """Another model's, of other triggers, of other images."""
    store, changed = ScoreStore(tmp_path), IMAGES.test.images.clone()
    changed[:, :, 4, 4] ^= 1
    other = ImageTensors("made", IMAGES.train, LabelledImages(changed, IMAGES.test.labels), IMAGES.class_names, 20)
    for name, sha256, kind, images in (
        ("name", "sha", "one", IMAGES),
        ("name", "sha of another build", "one", IMAGES),
        ("another", "sha", "one", IMAGES),
        ("another", "sha", "two", IMAGES),
        ("another", "sha", "one", other),
    ):
        scored.clear()
        store.scores(name, sha256, random_model(0), scorer(kind, 0, images))
        assert scored == split_test(images, 0).scoring_indices.tolist()
    scored.clear()
    store.scores("another", "sha", random_model(0), scorer("one", 0))
    assert scored == [], "three kinds of outcomes in one file"


@pytest.mark.parametrize("damage", ["no bits", "no letters", "few", "other shape", "not a mapping"])
def test_damaged_outcomes_are_found_again(tmp_path: Path, scored: list[int], damage: str) -> None:
    """In a file without a checksum, which those of older versions are."""
    store, model = ScoreStore(tmp_path), random_model(0)
    expected = store.scores("name", "sha", model, scorer("one", 0))
    path = tmp_path / "name.scores.json"
    tree = json.loads(path.read_text())
    del tree["checksum"]
    entry = tree["outcomes"][scorer("one", 0).identity]
    if damage == "no bits":
        del entry["scored"]
    elif damage == "not a mapping":
        tree["outcomes"][scorer("one", 0).identity] = 3
    elif damage == "other shape":
        entry["shape"] = [entry["shape"][0], entry["shape"][1] - 1]
    else:
        entry["scored"] = "!" if damage == "no letters" else base64.b64encode(b"\xff").decode()
    path.write_text(json.dumps(tree))
    scored.clear()
    assert store.scores("name", "sha", model, scorer("one", 0)) == expected
    assert len(scored) == len(expected.outcomes.correct)
    assert json.loads(path.read_text()).get("checksum")
