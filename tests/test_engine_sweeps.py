"""The engine's sweep files: what they cover, and that every variant they name runs, on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_defenses import clean, context, tiny

from adapters import defenses
from ibau_defense import RECIPES

SWEEPS = Path(__file__).resolve().parents[1] / "sweeps"
*VARIANTS, BARE = yaml.safe_load((SWEEPS / "engine_solvers.yaml").read_text())["grid"]["defense"]
SOLVERS = ("fixed_point", "neumann", "conjugate_gradient", "minres", "normal_cg")
CURVATURES = ("exact", "forward_over_reverse", "directional", "gauss_newton")


def test_every_solver_meets_every_curvature_once() -> None:
    assert sorted((one["solver"], one["curvature"]) for one in VARIANTS) == sorted(product(SOLVERS, CURVATURES))


def test_the_last_one_has_no_implicit_term_and_is_the_same_recipe_else() -> None:
    assert replace(RECIPES[BARE["recipe"]], implicit=True) == RECIPES[VARIANTS[0]["recipe"]]


def test_the_variants_differ_in_nothing_else() -> None:
    rest = {"solver", "curvature", "mixed", "positive", "damping"}
    assert len({str(sorted((key, one[key]) for key in one if key not in rest)) for one in VARIANTS}) == 1
    assert all(one.get("positive", False) == (one["curvature"] == "gauss_newton") for one in VARIANTS)
    assert all(one.get("damping", 0) == 2 * RECIPES[one["recipe"]].penalty for one in VARIANTS if one.get("positive"))
    assert all((one.get("mixed") == "directional") == (one["curvature"] == "directional") for one in VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: f"{one['solver']}-{one['curvature']}")
def test_every_variant_runs_and_solves_what_it_says(variant: dict[str, Any]) -> None:
    rounds: list[dict[str, Any]] = []
    defense = defenses.build(variant)
    defense.check("defense")
    result = defense.run(tiny(), clean(), context(defense, on_round=lambda _, info: rounds.append(dict(info))))
    assert result.status == "ok", result.reason
    assert 1 <= rounds[0]["solver_steps"] <= 5
    assert rounds[0]["implicit_norm"] > 0
    if variant["curvature"] == "gauss_newton":  # positive definite by the damping, up to rounding
        assert rounds[0]["curvature"] > 0.002 - 1e-5


PIECES: list[dict[str, Any]] = yaml.safe_load((SWEEPS / "engine_fast.yaml").read_text())["grid"]["defense"]


def test_each_ablation_of_fast_changes_one_piece() -> None:
    whole, *rest = (vars(defenses.build(one).settings()) for one in PIECES)  # type: ignore[attr-defined]
    differing = [{name for name, value in other.items() if value != whole[name]} for other in rest]
    assert whole == vars(RECIPES["fast"])
    assert differing == [{"starts", "sharp"}, {"starts"}, {"starts"}, {"sharp"}, {"warmup"}, {"implicit"}]
