"""pydantic's findings as the one line a user gets: the key, what was found, what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adapters.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], tree: Mapping[str, Any], prefix: str | Callable[[str], str]) -> Model:
    """``tree`` as ``model``, without any coercion (a text is no number); ``UserError`` about the first fault.

    ``prefix`` stands before the key in the message, or is a function of the key that gives its name.
    """
    try:
        return model.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise user_error(error, tree, prefix, known=model.model_fields) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{prefix if isinstance(prefix, str) else 'cell'}: {error}; expected plain values") from error


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """A ``UserError`` raised inside is one that names the file first."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error


def user_error(
    error: ValidationError, tree: Any, prefix: str | Callable[[str], str], known: Mapping[str, Any]
) -> UserError:
    """The line for the fault that lies deepest: of a union's members, that is the one the user meant."""
    faults = error.errors(include_url=False)
    details = max(faults, key=lambda one: len(_path(one, tree)))
    path = _path(details, tree)
    beside = [one for one in faults if one is not details and _path(one, tree) == path]
    name = ".".join(path)
    if callable(prefix):
        name = prefix(name) if name else "cell"
    elif prefix:
        name = f"{prefix}.{name}" if name else prefix
    return UserError(f"{name or 'sweep file'}: {_fault(details, _siblings(path, known), beside)}")


def _siblings(path: Sequence[str], fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fields that stand beside the last key of ``path``; None where that is no model's."""
    for part in path[:-1]:
        model = getattr(fields.get(part), "annotation", None)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
        fields = model.model_fields
    return fields


def _path(details: ErrorDetails, tree: Any) -> tuple[str, ...]:
    """The parts of pydantic's location that are keys of ``tree``: it puts the names of union members between."""
    path: list[str] = []
    node = tree
    for part in details["loc"]:
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(part, int)
        if inside:
            node = node[part]
        elif details["type"] != "missing" or part != details["loc"][-1]:
            continue
        path.append(str(part))
    return tuple(path)


def _fault(details: ErrorDetails, known: Mapping[str, Any] | None, beside: Sequence[ErrorDetails]) -> str:
    """``beside``: the faults of the same key. Of a union's, what else may stand there is told: the words it takes."""
    if details["type"] == "extra_forbidden":
        listed = f"; expected one of: {', '.join(known)}" if known else "; expected it to be left out"
        return f"unknown key{listed}"
    if details["type"] == "missing":
        return "found nothing; expected a value"
    wanted = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    words = [one["msg"].removeprefix("Input should be ") for one in beside if one["type"] == "literal_error"]
    return f"found {details['input']!r}; expected {', or '.join([wanted[:1].lower() + wanted[1:], *words])}"
