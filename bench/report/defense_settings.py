"""What a defense's settings take, and what they are where a sweep file says nothing: from the code, for documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adapters.defenses import DEFENSES, Ibau
from adapters.errors import UserError
from bench.report.markdown import escape
from ibau_defense import RECIPES

_BOUNDS = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "below {:g}",
}
_KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true, false", "null": "null"}
RECIPES_OWN = "the recipe's"


def table(name: str) -> str:
    """Markdown: a line for each setting of the defense ``name``; for ``ibau`` besides what they are in its recipes."""
    if name not in DEFENSES:
        raise UserError(f"settings: found {name!r}; expected one of: {', '.join(DEFENSES)}")
    fields = DEFENSES[name].model_json_schema().get("properties", {})
    recipes = {recipe: Ibau.of_recipe(recipe) for recipe in RECIPES} if name == Ibau.name else {}
    theirs = {key for values in recipes.values() for key in values}
    rows = [
        [f"`{key}`", *(_of_the_recipe(field) if key in theirs else _of_its_own(field))] for key, field in fields.items()
    ]
    tables = [_lines(["Setting", "Takes", "Default"], rows)]
    if recipes:
        rows = [
            [f"`{key}`", *(_value(values[key]) if key in values else "–" for values in recipes.values())]
            for key in fields
            if key in theirs
        ]
        tables.append(_lines(["Setting", *(f"`{recipe}`" for recipe in recipes)], rows))
    return "\n\n".join(tables) + "\n"


def _of_its_own(field: Mapping[str, Any]) -> list[str]:
    return [escape(_takes(field)), _value(field["default"])]


def _of_the_recipe(field: Mapping[str, Any]) -> list[str]:
    """``null`` is no value of such a setting: it stands for the recipe's own."""
    return [escape(_takes(field).removesuffix(" or null")), RECIPES_OWN]


def _lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def _takes(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_takes(one) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if field["type"] == "array":
        return f"list: {_takes(field['items'])}"
    bounds = [text.format(field[bound]) for bound, text in _BOUNDS.items() if bound in field]
    return " ".join([_KINDS[field["type"]], ", ".join(bounds)]).strip()


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return escape(f"[{', '.join(map(_value, value))}]")
    return escape(f"{value:g}" if isinstance(value, int | float) else str(value))
