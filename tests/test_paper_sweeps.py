"""The paper's sweeps: what each file covers, at both sizes, and what they share. Nothing is run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from adapters.attacks import FITS
from bench import includes, preflight, published
from bench.phases import phases
from bench.report.values import canonical
from bench.spec import SweepPlan

FOLDER = Path(__file__).resolve().parents[1] / "sweeps" / "paper"
COUNTS = {  # (cells, victims) at full size, and with the small budget
    "table1": ((240, 24), (72, 8)),
    "table2": ((216, 24), (56, 8)),
    "table3": ((60, 6), (9, 1)),
    "table4": ((66, 6), (18, 2)),
    "table5": ((81, 3), (24, 1)),
    "table6": ((294, 42), (42, 7)),
    "table7": ((30, 15), (3, 3)),
    "table8": ((30, 5), (3, 1)),
    "figure1": ((80, 1), (12, 1)),
    "figures3_4": ((8, 4), (2, 2)),
    "figure5": ((2, 1), (1, 1)),
    "c_delta": ((60, 3), (12, 1)),
    "ablation": ((39, 3), (8, 1)),
    "all": ((926, 75), (157, 14)),
}
SIZES = ((None, 0), ("small", 1))


@cache
def _plan(name: str, budget: str | None = None, *overrides: str) -> SweepPlan:
    return includes.load(FOLDER / f"{name}.yaml", overrides, Path("data"), budget)


def _ids(name: str, budget: str | None = None) -> set[str]:
    return {cell.id for cell in _plan(name, budget).cells}


@pytest.mark.parametrize(("budget", "place"), SIZES)
@pytest.mark.parametrize("name", COUNTS)
def test_every_file_expands_to_the_cells_it_should(name: str, budget: str | None, place: int) -> None:
    plan = _plan(name, budget)
    assert (len(plan.cells), len({cell.victim_id for cell in plan.cells})) == COUNTS[name][place]
    assert len({cell.id for cell in plan.cells}) == len(plan.cells)
    preflight.check_names(plan)


def test_at_full_size_victims_are_trained_as_in_the_paper() -> None:
    for cell in _plan("all").cells:
        assert cell.training
        assert cell.training.epochs == 50
        assert cell.training.peak_lr == (0.05 if cell.model == "simplified_vgg" else 0.003)


def test_at_full_size_the_baselines_are_as_published() -> None:
    """Appendix A.4.2: "the same settings as the original work", NAD with its preprocessing."""
    schedule = {"steps": 1000, "batches_per_step": 31, "batch_size": 32, "patience": 5, "early_stop": 25}
    searched, distilled = 0, 0
    for cell in _plan("all").cells:
        if cell.defense["name"] in ("neural_cleanse", "tabor"):
            assert {key: cell.defense[key] for key in schedule} == schedule
            searched += 1
        if cell.defense["name"] == "nad" and cell.dataset == "cifar10":
            assert cell.defense["preprocessing"] == "published"
            distilled += 1
    assert searched > 100
    assert distilled > 30


def test_all_includes_every_file_once() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(COUNTS)
    for budget, _ in SIZES:
        plan = _plan("all", budget)
        ending = f"-{budget}" if budget else ""
        assert plan.name == f"paper{ending}"
        assert [part.name for part in plan.parts] == [f"{name}{ending}" for name in COUNTS if name != "all"]
        assert _ids("all", budget) == set().union(*(_ids(name, budget) for name in COUNTS if name != "all"))


def test_the_name_of_a_file_is_the_sweeps() -> None:
    for name in set(COUNTS) - {"all"}:
        assert _plan(name).name == name


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "all"])
def test_the_small_budget_says_what_it_takes_away(name: str) -> None:
    small = _plan(name, "small")
    assert len(small.reductions) > 80
    assert {cell.dataset for cell in small.cells} == {"digits"}
    sizes = {cell.clean_size for cell in small.cells}
    for size in sizes - {None}:
        assert size <= 450
        assert str(size) in small.reductions or _only_clean_size(name, size)
    assert {cell.seed for cell in small.cells} == {0}


def _only_clean_size(name: str, size: int) -> bool:
    """Whether the full sweep has this clean size too, so that nothing was reduced."""
    return size in {cell.clean_size for cell in _plan(name).cells}


def test_the_small_budget_fits_the_embedded_data(tmp_path: Path) -> None:
    checked = preflight.check_data(_plan("all", "small"), tmp_path)
    assert set(checked.sizes) == {"digits"}
    assert set(checked.costs) == {cell.victim_id for cell in _plan("all", "small").cells}


@pytest.mark.parametrize(("budget", "place"), SIZES)
def test_one_setting_moves_every_file_to_another_data_set(budget: str | None, place: int) -> None:
    plan = _plan("all", budget, "cell.dataset=gtsrb")
    assert {cell.dataset for cell in plan.cells} == {"gtsrb"}
    assert len(plan.cells) <= COUNTS["all"][place][0]
    assert all(part.cells for part in plan.parts)


def test_tables_1_and_2_have_the_papers_rows_and_columns() -> None:
    for name, dataset, columns in (("table1", "cifar10", published._T1), ("table2", "gtsrb", published._T2)):
        cells = _plan(name).cells
        assert {cell.defense["name"] for cell in cells} == {*columns.split(), "fine_tuning"}, "and a control"
        cases = {(cell.attack, cell.target) for cell in cells}
        assert cases == {*TARGETS_OF_FIGURE_2.items(), ("badnets", "all_to_all")}
        assert {cell.dataset for cell in cells} == {dataset}
        assert {(cell.poison_ratio, cell.clean_size) for cell in cells} == {(0.2, 5000)}
        assert {cell.radius for cell in cells} == {None, 10.0}
        for cell in cells:
            attack = str(cell.attack) if cell.target != "all_to_all" else "all_to_all"
            known = published.lookup(dataset, attack, cell.defense["name"]) is not None
            assert known == (cell.defense["name"] != "fine_tuning")


TARGETS_OF_FIGURE_2 = {
    "badnets": 8, "blend": 1, "l0_inv": 0, "l2_inv": 0, "smooth": 6, "trojan_sq": 2, "trojan_wm": 2,
}  # fmt: skip


def test_the_targets_are_those_of_the_gallery() -> None:
    assert published.TARGETS == TARGETS_OF_FIGURE_2


@pytest.mark.parametrize("name", ["table3", "figures3_4"])
def test_seven_triggers_have_the_targets_of_table_3(name: str) -> None:
    several = {cell.attack for cell in _plan(name).cells if isinstance(cell.attack, tuple)}
    (attack,) = several
    assert {one.attack: one.target for one in attack} == published.TABLE_3_TARGETS
    assert {cell.mix for cell in _plan(name).cells if cell.attack == attack} == {"united"}
    assert {cell.dataset for cell in _plan(name).cells} == {"cifar10", "gtsrb"}


def test_tables_4_5_7_and_8_have_the_papers_axes() -> None:
    assert {cell.poison_ratio for cell in _plan("table4").cells} == {0.05, 0.005}
    assert {cell.clean_size for cell in _plan("table5").cells} == {2500, 500, 100}
    assert {cell.model for cell in _plan("table7").cells} == {row.model for row in published.TABLE_7}
    assert {cell.clean_size for cell in _plan("table8").cells} == {row.clean_size for row in published.TABLE_8}
    for name in ("table4", "table5", "table7", "table8", "c_delta"):
        assert {(cell.attack, cell.target) for cell in _plan(name).cells} == {("trojan_wm", 2)}
    assert {cell.seed for name in ("table7", "table8") for cell in _plan(name).cells} == set(range(5))


def test_only_at_full_size_table_6_runs_alone_and_then_in_all_too() -> None:
    full, small = (_plan("all", budget) for budget, _ in SIZES)
    assert [{cell.id for cell in one.cells} for one in phases(full, full.cells)[1:]] == [_ids("table6")]
    assert len(phases(small, small.cells)) == 1
    assert _plan("table6").resources.alone
    assert "two cells at a time" in _plan("table6", "small").reductions


def test_what_two_files_have_in_common_is_one_cell() -> None:
    small = "small"
    assert _ids("table2", small) < _ids("table1", small)
    assert _ids("table6", small) < _ids("table1", small)
    assert len(_ids("table7") & _ids("table8")) == 10
    assert len(_ids("table5", small) & _ids("c_delta", small)) == 3
    assert len(_ids("table6") - _ids("table1") - _ids("table2")) == 7 * 2 * 3  # what Table 2 leaves out
    assert len(_ids("table5") & _ids("c_delta")) == 9


def test_figure_1_is_twenty_runs_on_one_victim() -> None:
    cells = _plan("figure1").cells
    by_method: dict[str, list[int | None]] = {}
    for cell in cells:
        by_method.setdefault(canonical(cell.defense), []).append(cell.run)
    assert len(by_method) == 4
    assert all(sorted(run or 0 for run in runs) == list(range(20)) for runs in by_method.values())


def test_figure_5_asks_for_layouts() -> None:
    assert all(cell.tsne_images for budget, _ in SIZES for cell in _plan("figure5", budget).cells)


def test_the_ablation_varies_what_it_says() -> None:
    variants = [cell.defense for cell in _plan("ablation").cells if cell.seed == 0]
    assert {"paper", "reference", "danskin", "fast"} == {one["recipe"] for one in variants}
    assert len({one["solver"] for one in variants}) == 6  # the recipe's own and five others
    assert {one["curvature"] for one in variants} == {None, "forward_over_reverse", "directional", "gauss_newton"}
    assert {one["recipe"]: one["implicit"] for one in variants if one["implicit"] or one["recipe"] == "danskin"} == {
        "fast": True,
        "danskin": None,
    }


@pytest.mark.parametrize("name", ["attacks", "attacks_cifar10"])
def test_the_attack_sweeps_start_with_the_clean_model_their_triggers_are_fitted_to(name: str) -> None:
    from bench.triggers import clean_cell

    first, *rest = includes.load(FOLDER.parent / f"{name}.yaml", (), Path("data")).cells
    assert first.is_clean
    assert not any(cell.is_clean for cell in rest)
    fitted = [cell for cell in rest if cell.attack in FITS]
    assert fitted
    assert {clean_cell(cell, (3, 32, 32)).victim_id for cell in fitted} == {first.victim_id}


def test_every_file_says_what_it_is() -> None:
    for name in COUNTS:
        text = (FOLDER / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        assert yaml.safe_load(text)["name"]
