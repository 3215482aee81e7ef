"""The table a sweep ends with: it mixes nothing that the report keeps apart."""

from __future__ import annotations

from typing import Any

from fake_cells import record

from bench.records import Record
from bench.summary import _defense_names, table


def _one(acc: float | None = 0.5, /, *, status: Any = "ok", data: str = "", split: int = 1, **changes: Any) -> Record:
    made = record("none", status=status, **changes)
    return made.model_copy(update={"acc": acc, "data": data or None, "split": split})


def _rows(records: list[Record]) -> list[tuple[str, ...]]:
    """Axis, value, cells and ACC of each line."""
    columns = {str(column.header): list(column.cells) for column in table(records).columns}
    return list(zip(*(map(str, columns[name]) for name in ("axis", "value", "cells", "ACC")), strict=True))


def test_one_data_set_is_told_of_as_a_whole_and_by_its_axes() -> None:
    found = _rows([_one(0.5), _one(0.7, clean_size=50)])
    assert found == [
        ("all", "", "2", "60.0 ± 14.1"),
        ("clean_size", "50", "1", "70.0"),
        ("", "150", "1", "50.0"),
    ]


def test_settings_that_are_the_recipes_own_are_in_no_name() -> None:
    same = {"name": "ibau", "recipe": "fast"}
    names = _defense_names(
        [record("ibau", defense={**same, "rounds": rounds, "penalty": None}) for rounds in (2, None)]
    )
    assert sorted(names.values()) == ["ibau", "ibau (rounds=2)"]


def test_data_sets_are_kept_apart_and_so_are_their_axes() -> None:
    found = _rows([_one(0.5), _one(0.7, clean_size=50), _one(0.9, dataset="gtsrb")])
    assert found == [
        ("digits", "", "2", "60.0 ± 14.1"),
        ("clean_size", "50", "1", "70.0"),
        ("", "150", "1", "50.0"),
        ("gtsrb", "", "1", "90.0"),
    ]


def test_contents_and_splits_are_kept_apart() -> None:
    contents = [_one(0.5, data="a" * 64), _one(0.7, data="b" * 64, seed=1)]
    assert [(name, acc) for name, _, _, acc in _rows(contents)] == [
        ("digits · content aaaaaaaa", "50.0"),
        ("digits · content bbbbbbbb", "70.0"),
    ]
    splits = [_one(0.5), _one(0.7, split=2, seed=1)]
    assert [(name, acc) for name, _, _, acc in _rows(splits)] == [
        ("digits · split 1", "50.0"),
        ("digits · split 2", "70.0"),
    ]


def test_clean_models_are_in_no_mean_with_poisoned_ones() -> None:
    unpoisoned = {"attack": None, "target": None, "poison_ratio": None}
    clean = [_one(0.9, seed=seed, **unpoisoned) for seed in (0, 1)]
    assert _rows([_one(0.5), *clean, _one(0.7, clean_size=50)]) == [
        ("all", "", "2", "60.0 ± 14.1"),
        ("clean models", "", "2", "90.0 ± 0.0"),
        ("clean_size", "50", "1", "70.0"),
        ("", "150", "1", "50.0"),
    ]
    assert _rows(clean) == [("clean models", "", "2", "90.0 ± 0.0")]
    assert [name for name, *_ in _rows([*clean, _one(0.5, dataset="gtsrb")])] == ["digits · clean models", "gtsrb"]


def test_images_of_one_name_are_in_no_mean_together() -> None:
    """Nor are blends of one image with different shares; checkpoints of one name are told apart as in the report."""
    stamps = [{"image": f"{folder}/t.png", "mode": "replace", "digest": folder} for folder in "ab"]
    blends = [{"image": "c/u.png", "mode": "blend", "alpha": alpha, "digest": "c"} for alpha in (0.1, 0.2)]
    found = _rows([_one(0.1 * k, attack=attack) for k, attack in enumerate((*stamps, *blends), 1)])
    assert found[1:] == [
        ("attack", "a/t.png (replace)", "1", "10.0"),
        ("", "b/t.png (replace)", "1", "20.0"),
        ("", "u.png (blend 0.1)", "1", "30.0"),
        ("", "u.png (blend 0.2)", "1", "40.0"),
    ]
    unpoisoned = {"attack": None, "target": None, "poison_ratio": None, "training": None}
    brought = [{"checkpoint": f"{one}/m.pt", "trigger": stamps[0], "target": 8, "digest": one} for one in ("k", "l")]
    found = _rows([_one(0.1 * k, victim=victim, **unpoisoned) for k, victim in enumerate(brought, 1)])
    assert found[1:] == [("victim", "k/m.pt", "1", "10.0"), ("", "l/m.pt", "1", "20.0")]


def test_what_cannot_be_is_in_no_mean() -> None:
    percent = _one(0.7, seed=1).model_copy(update={"seconds": -1.0})
    assert _rows([_one(0.5), percent, _one(95.0, seed=2)]) == [("all", "", "2", "60.0 ± 14.1")]
    seconds = list(next(column for column in table([_one(0.5), percent]).columns if column.header == "s").cells)
    assert seconds == ["1.5"]


def test_what_the_report_does_not_score_is_in_no_mean() -> None:
    """A defense that ran out of time among it; nor does a failed cell, which tells no content, make a part."""
    late, failed = _one(0.1, status="timeout", seed=1), _one(None, status="failed", seed=2, dataset="gtsrb")
    told = _one(0.7, status="no_trigger_detected", seed=3, data="a" * 64)
    assert _rows([_one(0.5, data="a" * 64), late, failed, told]) == [("all", "", "2", "60.0 ± 14.1")]
    assert _rows([late]) == []
    assert _rows([]) == []
