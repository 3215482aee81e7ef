"""Files that include others, budgets, and the list of which record belongs to which file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_sweep

from adapters.errors import UserError
from bench import includes, manifest, preflight, sweep, yamlfile
from bench.phases import phases
from bench.records import RecordStore
from bench.spec import Resources, SweepPlan

BUDGET = {"reductions": "One  ratio\ninstead of two.", "set": {"grid.poison_ratio": [0.1], "cell.clean_size": 6}}


def _file(folder: Path, name: str, **changes: Any) -> Path:
    return tiny_sweep.write(folder, tiny_sweep.tree(name=name, **changes), f"{name}.yaml")


def _all(folder: Path, *names: str, **more: Any) -> Path:
    tree = {"name": "all", "include": [f"{name}.yaml" for name in names], **more}
    return tiny_sweep.write(folder, tree, "all.yaml")


def _load(path: Path, *overrides: str, budget: str | None = None) -> SweepPlan:
    return includes.load(path, overrides, path.parent, budget)


def test_a_shared_cell_is_one_cell(tmp_path: Path) -> None:
    _file(tmp_path, "one")
    _file(tmp_path, "two", grid={"poison_ratio": [0.3, 0.4], "radius": [2.0], "defense": ["none", "ibau"]})
    plan = _load(_all(tmp_path, "one", "two"))
    one, two = plan.parts
    assert (len(one.cells), len(two.cells), len(plan.cells)) == (6, 4, 9)
    assert plan.cells == (*one.cells, *(cell for cell in two.cells if cell not in one.cells))
    assert len({cell.victim_id for cell in plan.cells}) == 3
    assert plan.combinations == one.combinations + two.combinations


def test_files_may_lie_in_other_folders_and_include_further_ones(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    _file(tmp_path / "deep", "one")
    tiny_sweep.write(tmp_path / "deep", {"name": "half", "include": ["one.yaml"]}, "half.yaml")
    _file(tmp_path, "two", seeds=2)
    plan = _load(tiny_sweep.write(tmp_path, {"name": "all", "include": ["deep/half.yaml", "two.yaml"]}, "all.yaml"))
    assert [part.name for part in plan.parts] == ["one", "two"]
    assert plan.folders == (tmp_path, tmp_path / "deep")


def test_overrides_go_where_they_belong(tmp_path: Path) -> None:
    _file(tmp_path, "one")
    _file(tmp_path, "two")
    path = _all(tmp_path, "one")
    plan = _load(path, "name=mine", "include=[two.yaml]", "resources.cpu=2", "seeds=3", "cell.target=0")
    assert (plan.name, plan.resources.cpu, [part.name for part in plan.parts]) == ("mine", 2, ["two"])
    assert {cell.seed for cell in plan.cells} == {0, 1, 2}
    assert {cell.target for cell in plan.cells} == {0}


def test_a_key_is_named_as_an_axis_where_every_file_has_it_as_one(tmp_path: Path) -> None:
    _file(tmp_path, "one")
    tree = tiny_sweep.tree(name="two", grid={"defense": ["none"]})
    tree["cell"]["poison_ratio"] = 0.4
    tiny_sweep.write(tmp_path, tree, "two.yaml")
    plan = _load(_all(tmp_path, "one", "two"))
    assert [plan.key(name) for name in ("defense", "poison_ratio")] == ["grid.defense", "cell.poison_ratio"]


@pytest.mark.parametrize(("mix", "attainable"), [("united", True), ("disjoint", False)])
def test_the_ratio_of_triggers_that_share_one_set_is_checked_for_them_together(
    mix: str, attainable: bool, tmp_path: Path
) -> None:
    tiny_sweep.write_images(tmp_path)
    tree = tiny_sweep.tree(name="one", grid={"defense": ["none"]})
    del tree["cell"]["target"]
    tree["cell"] |= {"poison_ratio": 0.4, "mix": mix}
    tree["cell"]["attack"] = [{"attack": "badnets", "target": 0}, {"attack": "blend", "target": 1}]
    plan = _load(tiny_sweep.write(tmp_path, tree, "one.yaml"))
    if attainable:
        preflight.check_data(plan, tmp_path / "cache")
    else:
        with pytest.raises(UserError, match=r"cell\.poison_ratio: found 0\.4, .*for each of 2 triggers"):
            preflight.check_data(plan, tmp_path / "cache")


def test_a_budget_comes_before_what_the_command_line_sets(tmp_path: Path) -> None:
    path = _file(tmp_path, "one", budgets={"small": BUDGET})
    assert len(_load(path).cells) == 6
    small = _load(path, budget="small")
    assert (small.name, small.reductions) == ("one-small", "One ratio instead of two.")
    assert {(cell.poison_ratio, cell.clean_size) for cell in small.cells} == {(0.1, 6)}
    again = _load(path, "cell.clean_size=7", budget="small")
    assert {(cell.poison_ratio, cell.clean_size) for cell in again.cells} == {(0.1, 7)}


def test_a_key_of_the_cell_takes_the_place_of_its_axis() -> None:
    grid = {"a, b, c": [[1, 2, 3], [4, 2, 3]], "d": [1, 2], "a.x": [1], "b, e": [[1, 2], [3, 4]]}
    tree = {"grid": grid}
    assert yamlfile.assign(tree, "cell.d", 7, "--set")["grid"] == {key: grid[key] for key in grid if key != "d"}
    changed = yamlfile.assign(tree, "cell.a", 7, "--set")["grid"]
    assert changed == {"b, c": [[2, 3]], "d": [1, 2], "a.x": [1], "b, e": [[1, 2], [3, 4]]}
    assert yamlfile.assign({"grid": {"b, e": [[1, 2], [3, 4]]}}, "cell.b", 0, "")["grid"] == {"e": [2, 4]}
    assert yamlfile.assign(tree, "cell.a.x", 7, "--set")["grid"] == {key: grid[key] for key in grid if key != "a.x"}
    assert yamlfile.assign(tree, "cell.d", None, "--set") == {"grid": grid, "cell": {}}
    assert yamlfile.assign({"grid": {"d": [1]}}, "cell.d", 2, "--set") == {"cell": {"d": 2}}


ALONE = {"cpu": 2, "gpu": 1, "alone": True}


def _phases(plan: SweepPlan) -> list[tuple[set[str], Resources, set[str]]]:
    found = phases(plan, plan.cells)
    return [({cell.id for cell in one.cells}, one.resources, {cell.id for cell in one.ahead}) for one in found]


def test_cells_of_a_file_that_runs_alone_come_last_and_alone_also_those_of_others(tmp_path: Path) -> None:
    _file(tmp_path, "one")
    _file(tmp_path, "two", grid={"poison_ratio": [0.3, 0.4], "defense": ["none"]}, resources=ALONE)
    resources = {"cpu": 1, "gpu": 0.25}
    plan = _load(_all(tmp_path, "one", "two", resources=resources))
    one, two = ({cell.id for cell in part.cells} for part in plan.parts)
    assert one & two
    together, own = Resources(**resources), Resources(**ALONE)
    assert _phases(plan) == [(one - two, together, two), (two, own, set())]
    done = [cell for cell in plan.cells if cell.id in one]  # an earlier run has them
    assert [len(part.cells) for part in phases(plan, [cell for cell in plan.cells if cell not in done])] == [0, 1]


@pytest.mark.parametrize("alone", [True, False])
def test_where_the_including_file_says_alone_it_goes_for_all(tmp_path: Path, alone: bool) -> None:
    _file(tmp_path, "one")
    _file(tmp_path, "two", grid={"poison_ratio": [0.4], "defense": ["none"]}, resources=ALONE)
    path = _all(tmp_path, "one", "two", resources={"cpu": 1})
    for plan in (_load(path, f"resources.alone={str(alone).lower()}"), _load(path.parent / "one.yaml")):
        assert _phases(plan) == [({cell.id for cell in plan.cells}, plan.resources, set())]
    everything = _load(_all(tmp_path, "one", "two", resources={"cpu": 1, "alone": alone}))
    assert [(one.resources.alone, len(one.cells)) for one in phases(everything, everything.cells)] == [(alone, 7)]


def test_a_budget_may_give_cells_company(tmp_path: Path) -> None:
    small = {"reductions": "Not alone.", "set": {"resources.alone": False}}
    _file(tmp_path, "one", resources=ALONE, budgets={"small": small})
    path = _all(tmp_path, "one")
    assert [len(one.cells) for one in phases(_load(path), _load(path).cells)] == [0, 6]
    plan = _load(path, budget="small")
    assert [(len(one.cells), one.resources.alone) for one in phases(plan, plan.cells)] == [(6, False)]


FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...], str | None, str]] = {
    "a budget nobody has": ({}, (), "tiny", "one.yaml: --budget: found 'tiny'; expected one of: small"),
    "no budgets at all": ({"budgets": {}}, (), "small", "--budget: found 'small'; expected none, the file has no bu"),
    "no reductions": ({"budgets": {"small": {"set": {"seeds": 1}}}}, (), None, "budgets.small.reductions: found noth"),
    "nothing set": ({"budgets": {"small": {"reductions": "x", "set": {}}}}, (), None, "budgets.small.set: found {}"),
    "a budget's unknown key": (
        {"budgets": {"small": {"reductions": "x", "set": {"name": "y"}}}}, (), "small",
        "budgets.small.set.name: unknown key; expected the path of one in cell, grid, seeds or resources",
    ),
    "a budget's path through a number": (
        {"budgets": {"small": {"reductions": "x", "set": {"cell.target.x": 1}}}}, (), "small",
        "budgets.small.set cell.target.x: cell.target is 1; expected a mapping",
    ),
    "a value of the budget": (
        {"budgets": {"small": {"reductions": "x", "set": {"cell.poison_ratio": 2.0}}}}, (), "small",
        "one.yaml: cell.poison_ratio: found 2.0; expected less than 1",
    ),
    "a setting": ({}, ("cell.nonsense=1",), None, "one.yaml: cell.nonsense: unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_one_line_that_names_the_file(tmp_path: Path, case: str) -> None:
    changes, overrides, budget, expected = FAULTS[case]
    _file(tmp_path, "one", **{"budgets": {"small": BUDGET}, **changes})
    with pytest.raises(UserError) as caught:
        _load(_all(tmp_path, "one"), *overrides, budget=budget)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("one.yaml: ")
    assert "\n" not in str(caught.value)


def test_cycles_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")):
        tiny_sweep.write(tmp_path, {"name": name, "include": [f"{other}.yaml"]}, f"{name}.yaml")
    with pytest.raises(UserError, match=r"^include: a\.yaml → b\.yaml → c\.yaml → a\.yaml is a cycle; expected"):
        _load(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"self\.yaml → self\.yaml is a cycle"):
        _load(tmp_path / "self.yaml")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"include": ["one.yaml", "one.yaml"]}, "include: one.yaml is included twice; expected each file once"),
        ({"include": ["one.yaml", "copy.yaml"]}, "include: one.yaml and copy.yaml are both called 'one'"),
        ({"include": []}, "include: found []; expected"),
        ({"include": "one.yaml"}, "include: found 'one.yaml'; expected"),
        ({"include": ["none.yaml"]}, "none.yaml: cannot be read"),
        ({"cell": {"dataset": "digits"}}, "cell: unknown key; expected one of: name, include, resources"),
        ({"seeds": 2}, "seeds: unknown key; expected one of: name, include, resources"),
    ],
)
def test_what_an_including_file_may_say(tmp_path: Path, more: dict[str, Any], expected: str) -> None:
    _file(tmp_path, "one")
    tiny_sweep.write(tmp_path, tiny_sweep.tree(name="one", seeds=2), "copy.yaml")
    with pytest.raises(UserError) as caught:
        _load(_all(tmp_path, "one", **more))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_data_names_its_file(tmp_path: Path) -> None:
    tiny_sweep.write_images(tmp_path)
    _file(tmp_path, "one")
    _file(tmp_path, "two", cell={**tiny_sweep.tree()["cell"], "clean_size": 400})
    plan = _load(_all(tmp_path, "one", "two"))
    with pytest.raises(UserError, match=r"^two\.yaml: cell\.clean_size: found 400; expected at least 1 and at most 24"):
        preflight.check_data(plan, tmp_path / "cache")
    few = {"name": "ibau", "recipe": "reference", "batch_size": 16, "carriers": 0.1}
    _file(
        tmp_path,
        "two",
        cell={**tiny_sweep.tree()["cell"], "clean_size": 24, "poison_ratio": 0.1},
        grid={"defense": ["none", few]},
    )
    with pytest.raises(
        UserError, match=r"^two\.yaml: grid\.defense\.carriers: 0\.1 of a mini-batch of 8 images is none"
    ):
        preflight.check_data(_load(_all(tmp_path, "one", "two")), tmp_path / "cache")
    _file(tmp_path, "two", cell={**tiny_sweep.tree()["cell"], "model": "resnet81"})
    with pytest.raises(UserError, match=r"^two\.yaml: cell\.model: "):
        preflight.check_names(_load(_all(tmp_path, "one", "two")))


def test_the_manifest_says_which_record_is_of_which_file(tmp_path: Path) -> None:
    _file(tmp_path, "one", budgets={"small": BUDGET})
    _file(tmp_path, "two", grid={"poison_ratio": [0.1], "defense": ["none"]}, budgets={"small": BUDGET})
    path = _all(tmp_path, "one", "two")
    assert manifest.read(tmp_path) is None
    plan = _load(path, budget="small")
    manifest.write(plan, tmp_path)
    found = manifest.read(tmp_path)
    assert found is not None
    assert (found.name, found.budget) == ("all", "small")
    assert [(part.name, part.reductions) for part in found.parts] == [
        ("one", "One ratio instead of two."),
        ("two", "One ratio instead of two."),
    ]
    assert [part.cells for part in found.parts] == [tuple(cell.id for cell in part.cells) for part in plan.parts]
    before = (tmp_path / manifest.FILE).read_bytes()
    manifest.write(plan, tmp_path)
    assert (tmp_path / manifest.FILE).read_bytes() == before
    other = _load(path, "cell.target=0", budget="small")  # the same folder, other cells
    manifest.write(other, tmp_path)
    again = manifest.read(tmp_path)
    assert again is not None
    assert again.parts[2:] == found.parts
    assert [part.overrides for part in again.parts] == [("cell.target=0",)] * 2 + [()] * 2
    assert [part.cells for part in again.parts[:2]] == [tuple(cell.id for cell in part.cells) for part in other.parts]
    _file(tmp_path, "two", grid={"poison_ratio": [0.4], "defense": ["none"]})  # the file was edited since
    manifest.write(_load(path), tmp_path)
    edited = manifest.read(tmp_path)
    assert edited is not None
    assert [len(part.cells) for part in edited.parts] == [9, 2, 3, 1]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 1, "name": 2}', "\xff"])
def test_a_manifest_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.FILE).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"expected what bench\.sweep wrote") as caught:
        manifest.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_commands_budget_is_checked_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _file(tmp_path, "one", budgets={"small": BUDGET})
    assert sweep.main([str(path), "--budget", "tiny", "--out", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == "error: --budget: found 'tiny'; expected one of: small\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.ray
def test_a_sweep_of_two_files_on_a_budget_runs_to_its_report(tmp_path: Path) -> None:
    """On the embedded data: the shared cell once, the folder named for the budget, the layouts drawn, cells alone."""
    cell = {"dataset": "digits", "model": "test_resnet", "attack": "badnets", "target": 8, "poison_ratio": 0.2,
            "clean_size": 450, "min_asr": 0.0, "defense": "none"}  # fmt: skip
    small = {"reductions": "Less.", "set": {"cell.training": {"epochs": 1}, "cell.clean_size": 20, "seeds": 1}}
    tree = {"name": "one", "cell": cell, "seeds": 2, "budgets": {"small": small}}
    tiny_sweep.write(tmp_path, tree, "one.yaml")
    both = {"attack, target, poison_ratio": [["badnets", 8, 0.2], ["none", None, None]], "tsne_images": [None, 30]}
    rest = {key: value for key, value in cell.items() if key not in ("attack", "target", "poison_ratio")}
    alone = {"cpu": 1, "gpu": 0, "alone": True}
    tiny_sweep.write(tmp_path, {**tree, "name": "two", "cell": rest, "grid": both, "resources": alone}, "two.yaml")
    path = _all(tmp_path, "one", "two", resources={"cpu": 1, "gpu": 0})
    root = Path(__file__).parent.parent
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "bench.sweep", str(path), "--budget", "small", "--out", str(tmp_path / "runs")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reduced, one-small: Less." in done.stdout
    assert "0 cells to compute, 4 alone after them, 2 victims to train; " in done.stdout
    assert "4 cells to compute, 0 victims to train; 1 at a time, 1 thread(s) each, on the CPU" in done.stdout
    assert "each cell with a machine to itself" in done.stdout
    assert "4 cells, 4 of them alone after the others, in " in done.stdout
    folder = tmp_path / "runs" / "all-small"
    records = {(one.cell.is_clean, one.cell.tsne_images): one for one in RecordStore(folder).read()}
    assert set(records) == {(False, None), (False, 30), (True, None), (True, 30)}
    assert {one.status for one in records.values()} == {"ok"}
    assert all((one.asr is None) == one.cell.is_clean for one in records.values())
    assert [one.provenance.cells_beside for one in records.values() if one.provenance] == [0] * 4
    parts = json.loads((folder / manifest.FILE).read_text())["parts"]
    assert [len(part["cells"]) for part in parts] == [1, 4]
    assert (folder / "report.html").exists()
    assert len(list((folder / "plots").glob("*tsne-*.svg"))) == 2
