"""What a trigger with settings is called: the same in records, logs and reports. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeGuard


def named(name: str, settings: Mapping[str, object]) -> str:
    """``blend (alpha 0.1)``; the name alone without settings. Settings that differ give names that differ."""
    told = ", ".join(f"{key} {_text(settings[key])}" for key in sorted(settings))
    return f"{name} ({told})" if told else name


def _text(value: object) -> str:
    """A number in as few digits as tell it from all others; a text as it is; anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return json.dumps(value, sort_keys=True, default=str)


def has_name(spec: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether ``spec`` is the mapping of a trigger of the registry with settings, and not an image's."""
    return isinstance(spec, Mapping) and "name" in spec and "image" not in spec
