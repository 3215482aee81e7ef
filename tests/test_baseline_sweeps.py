"""The baselines' sweep files: what they cover, and which victims they share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.defenses import DEFENSES
from bench import spec
from bench.cells import Cell

ROOT = Path(__file__).resolve().parents[1]


def cells(name: str, budget: str | None = None) -> tuple[Cell, ...]:
    return tuple(spec.load(ROOT / "sweeps" / f"{name}.yaml", (), ROOT / "data", budget=budget).cells)


def settings(name: str, defense: str) -> Iterator[dict[str, object]]:
    for cell in cells(name):
        if cell.defense["name"] == defense:
            yield cell.defense


def test_every_defense_meets_both_targets_on_the_embedded_data() -> None:
    expected = {(target, name) for target in (3, "all_to_all") for name in DEFENSES}
    assert {(cell.target, cell.defense["name"]) for cell in cells("baselines")} == expected


@pytest.mark.parametrize(
    ("name", "zoo"),
    [
        ("baselines_gtsrb", cells("attacks")),
        ("baselines_gtsrb_short", cells("attacks")),
        ("baselines_cifar10_short", cells("attacks_cifar10", "small")),
    ],
)
def test_victims_are_those_of_the_attack_zoo(name: str, zoo: tuple[Cell, ...]) -> None:
    victims = {cell.victim_id: (cell.attack, cell.target) for cell in cells(name)}
    four = {("badnets", 8), ("l0_inv", 0), ("trojan_wm", 2), ("badnets", "all_to_all")}
    others = {("blend", 1), ("l2_inv", 0), ("smooth", 6), ("trojan_sq", 2)}  # with the four all of Table 1's
    assert set(victims.values()) == four | (others if name == "baselines_cifar10_short" else set())
    assert set(victims) <= {cell.victim_id for cell in zoo}


@pytest.mark.parametrize("name", ["baselines_gtsrb", "baselines_gtsrb_short", "baselines_cifar10_short"])
def test_the_six_baselines_and_ours_are_there(name: str) -> None:
    baselines = {"neural_cleanse", "tabor", "deep_inspect", "fine_pruning", "nad", "dp_sgd"}
    found = {str(cell.defense["name"]) for cell in cells(name)}
    assert found - {"fine_tuning"} == baselines | {"ibau", "none"}


def test_published_settings() -> None:
    """Appendix A.4.2 and, for what it leaves to the original works, their authors' code."""
    for search in ("neural_cleanse", "tabor"):
        for one in settings("baselines_gtsrb", search):
            assert (one["steps"], one["batches_per_step"], one["batch_size"], one["lr"]) == (1000, 31, 32, 0.1)
            assert (one["initial_cost"], one["cost_factor"], one["patience"], one["early_stop"]) == (1e-3, 2, 5, 25)
            assert (one["success"], one["threshold"]) == (0.99, 2)
    assert not any(one["log_norms"] for one in settings("baselines_gtsrb", "neural_cleanse"))
    for one in settings("baselines_gtsrb", "nad"):
        assert (one["teacher_epochs"], one["epochs"], one["betas"]) == (20, 20, [500, 1000, 1000])
    for one in settings("baselines_gtsrb", "fine_pruning"):
        assert (one["max_accuracy_drop"], one["validation_share"]) == (0.2, 0.2)
    assert {one["noise_multiplier"] for one in settings("baselines_gtsrb", "dp_sgd")} == {1.5}


def test_the_two_rules_of_neural_cleanse_judge_one_search() -> None:
    rules = [cell.defense for cell in cells("neural_cleanse_digits")]
    assert len(rules) == 6
    assert len({str({**one, "log_norms": None}) for one in rules}) == 1
    assert sorted(one["log_norms"] for one in rules) == [False] * 3 + [True] * 3
