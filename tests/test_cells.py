"""The cell's hash: equal for equal content, whatever the order or the place of files; different otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.cells import NOT_OF_THE_VICTIM, Cell, content_hash
from bench.seeds import derive_seed

numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    return Cell.model_validate(
        {
            "dataset": draw(st.sampled_from(["digits", "gtsrb"])),
            "model": "simplified_vgg",
            "attack": draw(st.sampled_from(["badnets", "blend"])),
            "target": draw(st.integers(0, 9) | st.just("all_to_all")),
            "poison_ratio": draw(st.floats(0.001, 0.9)),
            "training": {"epochs": draw(st.integers(1, 50))},
            "clean_size": draw(st.integers(1, 1000)),
            "radius": draw(st.none() | st.floats(0, 100)),
            "defense": {"name": "ibau", "rounds": draw(st.integers(1, 9))},
            "seed": draw(st.integers(0, 99)),
        }
    )


def _shuffled(tree: Any, draw: Any) -> Any:
    if isinstance(tree, dict):
        keys = draw(st.permutations(list(tree)))
        return {key: _shuffled(tree[key], draw) for key in keys}
    if isinstance(tree, list):
        return [_shuffled(item, draw) for item in tree]
    return tree


@given(json_values, st.data())
def test_key_order_plays_no_part(tree: Any, data: st.DataObject) -> None:
    assert content_hash(_shuffled(tree, data.draw)) == content_hash(tree)


@given(cells())
def test_a_cell_survives_json_with_its_id(cell: Cell) -> None:
    again = Cell.model_validate_json(json.dumps(cell.model_dump(mode="json")))
    assert again == cell
    assert (again.id, again.victim_id, hash(again)) == (cell.id, cell.victim_id, hash(cell))


@given(cells(), cells())
def test_cells_are_equal_exactly_if_their_ids_are(one: Cell, other: Cell) -> None:
    assert (one == other) == (one.id == other.id)


CHANGES: dict[str, Any] = {
    "dataset": "cifar10",
    "model": "resnet18",
    "attack": "other",
    "target": 11,
    "mix": "united",
    "clean_label": True,
    "poison_ratio": 0.95,
    "training": {"epochs": 77},
    "min_asr": 0.25,
    "clean_size": 2000,
    "radius": 777.0,
    "defense": {"name": "none"},
    "time_limit": 5.0,
    "evasion_radius": 0.25,
    "tsne_images": 50,
    "run": 3,
    "seed": 1000,
}
RECORDS = sorted((Path(__file__).resolve().parents[1] / "results").glob("*/records.jsonl"))
VICTIM_KEYS = {"dataset", "model", "attack", "target", "mix", "clean_label", "poison_ratio", "training", "seed"}


@given(cells(), st.sampled_from(sorted(CHANGES)))
def test_every_field_decides_the_id_and_those_of_the_victim_the_victims(cell: Cell, key: str) -> None:
    changed = Cell.model_validate({**cell.model_dump(), key: CHANGES[key]})
    assert changed.id != cell.id
    assert (changed.victim_id != cell.victim_id) == (key in VICTIM_KEYS)


def test_a_key_is_of_the_victim_or_is_not() -> None:
    assert set(CHANGES) | {"victim"} == set(Cell.model_fields)
    assert VICTIM_KEYS | {"victim"} == set(Cell.model_fields) - NOT_OF_THE_VICTIM


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_the_committed_records_keep_their_names(path: Path) -> None:
    """A new key, default or hash that renames cells would run finished ones again."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows
    for row in rows:
        cell = Cell.model_validate(row["cell"])
        assert cell.id == row["id"]
        assert row["victim"] is None or cell.victim_id == row["victim"]["id"]


def test_a_files_content_decides_and_its_place_does_not() -> None:
    def cell(path: str, digest: str) -> Cell:
        victim = {"checkpoint": path, "trigger": "badnets", "target": 1, "digest": digest}
        return Cell.model_validate(
            {"dataset": "digits", "model": "m", "victim": victim, "clean_size": 5, "defense": {"name": "none"}}
        )

    assert cell("a/x.pth", "1").id == cell("b/y.pth", "1").id
    assert cell("a/x.pth", "1").id != cell("a/x.pth", "2").id


@pytest.mark.parametrize("change", [{"poison_ratio": 0.0}, {"poison_ratio": 1.0}, {"radius": -1.0}, {"clean_size": 0}])
def test_values_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Cell.model_validate({"dataset": "digits", "model": "m", "defense": {"name": "none"}, **change})


@given(st.lists(st.text() | st.integers(), min_size=1, max_size=4))
def test_seeds_are_functions_of_their_parts(parts: list[Any]) -> None:
    assert derive_seed(*parts) == derive_seed(*parts)
    assert 0 <= derive_seed(*parts) < 2**63
    assert derive_seed(*parts) != derive_seed(*parts, "more")


def test_seeds_tell_where_a_part_ends() -> None:
    assert derive_seed("digits", 12) != derive_seed("digits1", 2)
    assert derive_seed("1") != derive_seed(1)


def test_a_seed_is_the_same_in_every_version() -> None:
    assert derive_seed("poison", "gtsrb", "badnets", 0) == 5189480184388605598
