"""From a sweep file to cells: counts, defaults, collapsing, files, and what ``--set`` does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sweep
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapters.errors import UserError
from bench import includes, spec, yamlfile

SWEEPS = Path(__file__).parent.parent / "sweeps"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spec")


def _load(folder: Path, tree: dict[str, Any], *overrides: str) -> spec.SweepPlan:
    return spec.load(tiny_sweep.write(folder, tree), overrides, folder)


def test_the_sensitivity_sweep_has_45_distinct_cells() -> None:
    plan = spec.load(SWEEPS / "sensitivity.yaml", (), Path("data"))
    assert (plan.combinations, len(plan.cells)) == (81, 45)
    assert len({cell.id for cell in plan.cells}) == 45
    assert {cell.radius for cell in plan.cells if cell.defense["name"] != "ibau"} == {None}


def test_defaults_are_filled_in(folder: Path) -> None:
    cell = _load(folder, tiny_sweep.tree()).cells[-1]
    assert cell.training is not None
    assert (cell.training.epochs, cell.training.peak_lr) == (1, 0.003)
    assert cell.defense["name"] == "ibau"
    assert cell.defense["rounds"] == 1
    assert "solver" in cell.defense


def test_radius_has_a_default_where_a_defense_uses_it(folder: Path) -> None:
    plan = _load(folder, tiny_sweep.tree(grid={"poison_ratio": [0.1], "defense": ["none", "ibau"]}))
    assert [cell.radius for cell in plan.cells] == [None, 10.0]


@settings(max_examples=25)
@given(
    ratios=st.lists(st.floats(0.01, 0.9), min_size=1, max_size=3, unique=True),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=3, unique=True),
    radii=st.lists(st.floats(0.1, 20), min_size=1, max_size=3, unique=True),
    names=st.lists(st.sampled_from(["none", "fine_tuning", "ibau"]), min_size=1, max_size=3, unique=True),
    seeds=st.integers(1, 3),
)
def test_the_number_of_cells(
    folder: Path, ratios: list[float], sizes: list[int], radii: list[float], names: list[str], seeds: int
) -> None:
    cell = {key: value for key, value in tiny_sweep.tree()["cell"].items() if key != "clean_size"}
    grid = {"poison_ratio": ratios, "clean_size": sizes, "radius": radii, "defense": names}
    if "ibau" not in names:
        del grid["radius"]
    plan = _load(folder, tiny_sweep.tree(cell=cell, grid=grid, seeds=seeds))
    assert plan.combinations == math.prod(map(len, grid.values())) * seeds
    by_name = [len(radii) if name == "ibau" else 1 for name in names]
    assert len(plan.cells) == len(ratios) * len(sizes) * seeds * sum(by_name)
    assert len({cell.id for cell in plan.cells}) == len(plan.cells)
    assert len({cell.victim_id for cell in plan.cells}) == len(ratios) * seeds


def test_integers_and_floats_of_one_value_are_one_cell(folder: Path) -> None:
    tree = tiny_sweep.tree(grid={"poison_ratio": [0.1], "radius": [2, 2.0], "defense": ["ibau"]})
    assert len(_load(folder, tree).cells) == 1


def test_dotted_axes_set_parts(folder: Path) -> None:
    grid = {"poison_ratio": [0.1], "training.peak_lr": [1e-3, 1e-2], "defense": ["none"]}
    cells = _load(folder, tiny_sweep.tree(grid=grid)).cells
    assert [cell.training.peak_lr for cell in cells if cell.training] == [1e-3, 1e-2]
    assert len({cell.victim_id for cell in cells}) == 2


def test_linked_axes_change_together(folder: Path) -> None:
    grid = {"poison_ratio, target": [[0.1, 0], [0.2, 2]], "defense": ["none"]}
    tree = tiny_sweep.tree(grid=grid)
    del tree["cell"]["target"]
    cells = _load(folder, tree).cells
    assert [(cell.poison_ratio, cell.target) for cell in cells] == [(0.1, 0), (0.2, 2)]


def test_overrides(folder: Path) -> None:
    plan = _load(
        folder, tiny_sweep.tree(), "cell.target=all_to_all", "grid.poison_ratio=[0.5]", "grid.radius=null",
        "seeds=2", "cell.training.peak_lr=1e-2",
    )  # fmt: skip
    assert {cell.target for cell in plan.cells} == {"all_to_all"}
    assert {cell.poison_ratio for cell in plan.cells} == {0.5}
    assert {cell.seed for cell in plan.cells} == {0, 1}
    assert {cell.training.peak_lr for cell in plan.cells if cell.training} == {0.01}
    assert len(plan.cells) == 4


def test_overrides_leave_the_tree_alone() -> None:
    tree = {"cell": {"a": 1}}
    assert yamlfile.override(tree, ["cell.a=2", "grid.training.epochs=[1]"]) == {
        "cell": {"a": 2},
        "grid": {"training.epochs": [1]},
    }
    assert tree == {"cell": {"a": 1}}


def test_files_are_found_beside_the_sweep_and_under_the_data_root(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for place, value in ((tmp_path, 255), (tmp_path / "data", 100)):
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(place / f"{value}.png")
    tree = tiny_sweep.tree(grid={"attack": [{"image": f"{v}.png", "mode": "add"} for v in (255, 100)]})
    del tree["cell"]["attack"]
    tree["cell"] |= {"poison_ratio": 0.1, "defense": "none"}
    plan = spec.load(tiny_sweep.write(tmp_path, tree), (), tmp_path / "data")
    digests = {cell.attack.digest for cell in plan.cells}  # type: ignore[union-attr]
    assert len(digests) == len(plan.cells) == 2
    (tmp_path / "data" / "255.png").write_bytes((tmp_path / "255.png").read_bytes())
    (tmp_path / "255.png").unlink()
    again = spec.load(tmp_path / "tiny.yaml", (), tmp_path / "data")
    assert [cell.id for cell in again.cells] == [cell.id for cell in plan.cells]


def test_another_mask_is_another_cell(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((16, 16), dtype=np.float32))
    for name, row in (("above", 0), ("below", 15)):
        mask = np.zeros((16, 16), dtype=np.float32)
        mask[row] = 1
        np.save(tmp_path / f"{name}.npy", mask)
    triggers = [{"image": "image.npy", "mode": "replace", "mask": f"{name}.npy"} for name in ("above", "below")]
    tree = tiny_sweep.tree(grid={"attack": triggers})
    del tree["cell"]["attack"]
    tree["cell"] |= {"poison_ratio": 0.1, "defense": "none"}
    plan = _load(tmp_path, tree)
    assert len({cell.victim_id for cell in plan.cells}) == 2


def test_a_checkpoint_takes_the_place_of_attack_target_and_ratio(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"weights")
    cell = {"dataset": "digits", "model": "simplified_vgg", "clean_size": 9, "defense": "none"}
    cell["victim"] = {"checkpoint": "x.pth", "trigger": "badnets", "target": 8}
    (found,) = _load(tmp_path, {"name": "tiny", "cell": cell}).cells
    assert found.victim is not None
    assert found.victim.digest
    assert (found.attack, found.target, found.poison_ratio, found.training) == (None, None, None, None)
    with pytest.raises(UserError, match=r"cell\.poison_ratio: unused key"):
        _load(tmp_path, {"name": "tiny", "cell": {**cell, "poison_ratio": 0.1}})


def test_several_triggers(folder: Path) -> None:
    tree = tiny_sweep.tree()
    tree["cell"]["attack"] = [{"attack": "badnets", "target": 1}, {"attack": "blend", "target": 2}]
    with pytest.raises(UserError, match=r"cell\.target: unused key"):
        _load(folder, tree)
    del tree["cell"]["target"]
    cells = _load(folder, tree).cells
    assert len(cells) == 6
    assert {cell.mix for cell in cells} == {"united"}
    tree["cell"]["mix"] = "disjoint"
    assert {cell.mix for cell in _load(folder, tree).cells} == {"disjoint"}
    tree["cell"]["mix"] = "shuffled"
    with pytest.raises(UserError, match=r"cell\.mix: found 'shuffled'; expected 'united' or 'disjoint'"):
        _load(folder, tree)
    tree["cell"] |= {"mix": "united", "attack": "badnets", "target": 1}
    with pytest.raises(UserError, match=r"cell\.mix: unused key; .* it is for a list of attacks"):
        _load(folder, tree)


def test_clean_label(folder: Path) -> None:
    tree = tiny_sweep.tree()
    plain = {cell.victim_id for cell in _load(folder, tree).cells}
    tree["cell"]["clean_label"] = False
    assert {cell.victim_id for cell in _load(folder, tree).cells} == plain
    tree["cell"]["clean_label"] = True
    cells = _load(folder, tree).cells
    assert {cell.clean_label for cell in cells} == {True}
    assert not {cell.victim_id for cell in cells} & plain
    tree["cell"]["clean_label"] = "adversarial"
    hard = _load(folder, tree).cells
    assert {cell.clean_label for cell in hard} == {"adversarial"}
    assert not {cell.victim_id for cell in hard} & {*plain, *(cell.victim_id for cell in cells)}
    tree["cell"]["clean_label"] = "yes"
    with pytest.raises(UserError, match=r"cell\.clean_label: found 'yes'; expected"):
        _load(folder, tree)
    tree["cell"] |= {"clean_label": True, "attack": [{"attack": "badnets", "target": 1}]}
    del tree["cell"]["target"]
    with pytest.raises(UserError, match=r"cell\.clean_label: unused key"):
        _load(folder, tree)


def test_a_clean_model_has_no_attack_and_nothing_that_only_an_attack_has(folder: Path) -> None:
    rows = {"attack, target, poison_ratio": [["none", None, None], ["badnets", 1, 0.1]], "defense": ["none", "ibau"]}
    tree = tiny_sweep.tree(grid=rows)
    for key in ("attack", "target"):
        del tree["cell"][key]
    cells = _load(folder, tree).cells
    clean = [cell for cell in cells if cell.is_clean]
    assert len(cells) == 4
    assert [cell.defense["name"] for cell in clean] == ["none", "ibau"]
    for cell in clean:
        assert (cell.attack, cell.target, cell.poison_ratio, cell.min_asr) == (None, None, None, 0.9)
        assert cell.training is not None
    assert [cell.clean_size for cell in clean] == [None, 9]  # without a defense nothing is taken on the clean set
    assert len({cell.victim_id for cell in clean}) == 1
    tree["grid"] = {"defense": ["none"]}
    tree["cell"] |= {"attack": "none"}
    with pytest.raises(UserError, match=r"cell\.min_asr: unused key"):
        _load(folder, tree)
    del tree["cell"]["min_asr"], tree["cell"]["clean_size"]
    assert _load(folder, tree).cells == (clean[0],)
    tree["cell"]["target"] = 3
    with pytest.raises(UserError, match=r"cell\.target: unused key"):
        _load(folder, tree)


def test_runs_share_their_victim_and_the_first_needs_no_number(folder: Path) -> None:
    grid = {"poison_ratio": [0.1], "defense": ["ibau"]}
    plain = _load(folder, tiny_sweep.tree(grid=grid)).cells
    cells = _load(folder, tiny_sweep.tree(grid={**grid, "run": [0, 1, 2]})).cells
    assert cells[0] == plain[0]
    assert [cell.run for cell in cells] == [None, 1, 2]
    assert len({cell.victim_id for cell in cells}) == 1
    for wrong in (-1, 0.5, "one", True, False):
        with pytest.raises(UserError, match=r"grid\.run: found"):
            _load(folder, tiny_sweep.tree(grid={**grid, "run": [wrong]}))


@pytest.mark.parametrize("name", sorted(path.name for path in SWEEPS.glob("*.yaml")))
def test_every_sweep_file_is_plain_yaml_with_known_keys(name: str) -> None:
    tree = yamlfile.read(SWEEPS / name)
    assert tree["name"] == Path(name).stem
    kind = includes.IncludingFile if "include" in tree else spec.SweepFile
    assert set(tree) <= set(kind.model_fields)


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_any_text_is_a_tree_or_an_error_of_ours(text: str) -> None:
    try:
        yamlfile.parse(text, "here")
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_file_nested_beyond_measure_is_refused_in_plain_words() -> None:
    with pytest.raises(UserError, match=r"^x\.yaml: nested too deeply to be read; expected at most 40 levels$"):
        yamlfile.parse("name: " + "[" * 100_000, "x.yaml")
