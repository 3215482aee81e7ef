"""The settings of a trigger that a sweep file may change, read from the code that makes it, and checked."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from adapters.errors import UserError

Share = Annotated[float, Field(gt=0, le=1)]
"""A share, a weight of a mixture, or a size in pixels of [0, 1]."""
Factor = Annotated[float, Field(gt=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class Setting(NamedTuple):
    """``kind``: a type, with its range as ``Annotated[…, Field(…)]``."""

    kind: Any
    default: Any


def of_fit(fit: Any) -> dict[str, Setting]:
    """The fields of an optimised trigger, a dataclass; their defaults are the values that ``fit`` has."""
    kinds = get_type_hints(type(fit), include_extras=True)
    return {one.name: Setting(kinds[one.name], getattr(fit, one.name)) for one in dataclasses.fields(fit) if one.init}


def of_factory(factory: Callable[..., Any]) -> dict[str, Setting]:
    """The keyword-only parameters, with defaults, of what makes a trigger from (image_shape, seed)."""
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters.values()
    except NameError:  # a name that only a type checker imports: each is then of the type of its default
        parameters = inspect.signature(factory).parameters.values()
    found = {}
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and one.default is not one.empty:
            unknown = one.annotation is one.empty or isinstance(one.annotation, str)
            found[one.name] = Setting(type(one.default) if unknown else one.annotation, one.default)
    return found


def checked(name: str, known: Mapping[str, Setting], given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Those of ``given`` that differ from the defaults, in the order of ``known``; null asks for the default.

    Raises ``UserError`` naming ``key`` and the setting: one the trigger ``name`` does not have, or a value of another
    type (nothing is converted, but a whole number to a float) or out of range.
    """
    for setting in given:
        if setting not in known:
            listed = f"one of: {', '.join(known)}" if known else "none, it has no settings"
            raise UserError(f"{key}.{setting}: unknown setting of {name!r}; expected {listed}")
    values = {
        setting: _value(one.kind, given[setting], f"{key}.{setting}")
        for setting, one in known.items()
        if given.get(setting) is not None
    }
    return {setting: value for setting, value in values.items() if value != known[setting].default}


def _value(kind: Any, value: Any, key: str) -> Any:
    try:
        return TypeAdapter(kind, config=_STRICT).validate_python(value)
    except ValidationError as error:
        wanted = error.errors(include_url=False)[0]["msg"].removeprefix("Input should be ")
        raise UserError(f"{key}: found {value!r}; expected {wanted[:1].lower()}{wanted[1:]}") from None
