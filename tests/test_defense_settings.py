"""The documents' tables of settings, and what ``ibau`` says its recipes are."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from adapters.defenses import DEFENSES, Ibau, build
from adapters.defenses.ibau import RecipeName
from adapters.errors import UserError
from bench.report.defense_settings import RECIPES_OWN, table
from ibau_defense import RECIPES

NAMES: tuple[RecipeName, ...] = get_args(RecipeName)
SWITCHES = {"implicit": True, "starts": False}
"""Settings that make others count."""


def test_every_recipe_has_a_name() -> None:
    assert set(NAMES) == set(RECIPES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_given_as_settings_is_the_recipe(name: RecipeName) -> None:
    given = {key: value for key, value in Ibau.of_recipe(name).items() if _can_be_given(key, value)}
    assert len(given) > 5
    assert build({"name": "ibau", "recipe": name, **given}).settings() == RECIPES[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_lacks_is_refused(name: RecipeName) -> None:
    own = Ibau.of_recipe(name)
    anywhere = {key: value for other in NAMES for key, value in Ibau.of_recipe(other).items()}
    left = [key for key in anywhere if key not in own]
    assert left
    for key in left:
        with pytest.raises(UserError, match=rf"cell\.defense\.{key}: found .+; expected "):
            build({"name": "ibau", "recipe": name, key: anywhere[key] if key != "ascent_steps" else 3})


def _can_be_given(key: str, value: Any) -> bool:
    """Not the shares of several phases, nor what a number stands for when it is left out."""
    return not isinstance(value, tuple) and not (key in ("ascent_steps", "batch_size") and isinstance(value, str))


@pytest.mark.parametrize("name", DEFENSES)
def test_a_table_has_every_setting(name: str) -> None:
    rows = [line.split(" | ") for line in table(name).split("\n\n")[0].splitlines()[2:]]
    assert [row[0].strip("|` ") for row in rows] == list(DEFENSES[name].model_fields)


def test_what_settings_take_and_are() -> None:
    nad, ibau, cleanse = table("nad"), table("ibau"), table("neural_cleanse")
    assert "| `betas` | list: number at least 0 | \\[500, 1000, 1000\\] |" in nad
    assert "| `layers` | list: text or null | null |" in nad
    assert "| `success` | number above 0, at most 1 | 0.99 |" in cleanse
    assert "| `log_norms` | true, false | false |" in cleanse
    assert f"| `outer_lr` | number above 0 | {RECIPES_OWN} |" in ibau
    assert "| `outer_lr` | 0.1 | 0.001 | 0.001 | 0.001 | 0.001 | 0.002 |" in ibau
    assert "| `batch_size` | all images | 100 | 100 | 100 | 100 | 64 |" in ibau
    assert "| `boundary` | false | false | false | – | – | – |" in ibau
    with pytest.raises(UserError, match="settings: found 'nothing'; expected one of: none, fine_tuning, ibau"):
        table("nothing")
