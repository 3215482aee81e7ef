"""Defenses by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from adapters.defenses.controls import FineTuning, NoDefense
from adapters.defenses.deep_inspect import DeepInspect
from adapters.defenses.dp_sgd import DpSgd
from adapters.defenses.fine_pruning import FinePruning
from adapters.defenses.ibau import Ibau
from adapters.defenses.nad import Nad
from adapters.defenses.naive_uap import NaiveUap
from adapters.defenses.neural_cleanse import NeuralCleanse
from adapters.defenses.tabor import Tabor
from adapters.errors import UserError
from adapters.protocols import Defense
from adapters.registry import add, get

DEFENSES: dict[str, type[Defense]] = {}
_ALL: tuple[type[Defense], ...] = (
    NoDefense, FineTuning, Ibau, NeuralCleanse, DeepInspect, Tabor, FinePruning, Nad, DpSgd, NaiveUap,
)  # fmt: skip
for _defense in _ALL:
    add(DEFENSES, _defense.name, _defense)


def build(spec: str | Mapping[str, Any], key: str = "cell.defense") -> Defense:
    """The defense a sweep file names: ``ibau``, or ``{name: ibau, rounds: 2, …}`` with settings.

    Raises:
        UserError: no such defense, no such setting, or a value out of range; one line that names the key.
    """
    tree: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = tree.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{key}.name: found {name!r}; expected one of: {', '.join(sorted(DEFENSES))}")
    kind = get(DEFENSES, key, name)
    try:
        defense = kind(**tree)
    except ValidationError as error:
        raise _one_line(key, kind, error) from None
    except TypeError as error:  # a key that is no string
        raise UserError(f"{key}: {error}") from None
    defense.check(key)
    return defense


def _one_line(key: str, kind: type[Defense], error: ValidationError) -> UserError:
    first = error.errors()[0]
    where = ".".join((key, *map(str, first["loc"])))
    if first["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields) or "none at all"
        return UserError(f"{where}: unknown setting of {kind.name}; expected one of: {known}")
    told = first["msg"].removeprefix("Value error, ")  # of a validator of the defense's own
    return UserError(f"{where}: found {first['input']!r}; {told[:1].lower()}{told[1:]}")


__all__ = [
    "DEFENSES", "DeepInspect", "DpSgd", "FinePruning", "FineTuning", "Ibau", "Nad", "NaiveUap", "NeuralCleanse",
    "NoDefense", "Tabor", "build",
]  # fmt: skip
