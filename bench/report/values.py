"""What the report takes from a file that may hold anything: finite numbers, clean texts, figures that can be."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bench.cells import SCHEMA_VERSION, Cell, content_hash

SHARES = ("acc", "asr", "ra", "der", "error_gap", "evasion_accuracy")
"""In [0, 1], and so are the ends of their intervals."""
AMOUNTS = ("seconds", "seconds_to_effect", "peak_memory_bytes", "forward", "backward")
"""Not negative."""
_PARTS = ("victim", "passes", "triggers", "rounds")
"""Where a record has such figures, besides at its top."""

_DEEPEST = 20
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Characters that a file cannot hold, a page must not, or that turn the direction of what follows."""


def number(value: object) -> float | None:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def canonical(tree: Any) -> str:
    """Sorted JSON: equal trees give equal text."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), default=str)


def text(value: object) -> str:
    """A text as it is, nothing for None, JSON for what holds others."""
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical(value) if isinstance(value, dict | list) else str(value)


def mapping(value: object) -> dict[str, Any]:
    """``value`` with texts as keys if it is a mapping, else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """``value`` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def tidy(value: Any, depth: int = 0) -> Any:
    """A JSON tree with the unfit characters of its texts replaced, cut where it is absurdly deep."""
    if isinstance(value, str):
        return _UNFIT.sub("\ufffd", value)
    if isinstance(value, dict | list) and depth > _DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {tidy(str(key)): tidy(item, depth + 1) for key, item in value.items()}
    return [tidy(item, depth + 1) for item in value] if isinstance(value, list) else value


def possible(record: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A record (a tidy one) without the figures that cannot be, and the names of these: ``acc``, ``victim.asr``."""
    left_out: dict[str, None] = {}

    def sifted(tree: Any, where: str) -> Any:
        if isinstance(tree, list):
            return [sifted(each, where) for each in tree]
        return kept(tree, where) if isinstance(tree, dict) else tree

    def kept(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
        good = {key: value for key, value in tree.items() if _can_be(key, value)}
        left_out.update((where + key, None) for key in tree if key not in good)
        return {key: sifted(value, f"{where}{key}.") if key in _PARTS else value for key, value in good.items()}

    return kept(record, ""), tuple(left_out)


def _can_be(key: str, value: object) -> bool:
    """Of a figure's value. What is no number at all is not judged here."""
    if key in AMOUNTS:
        amount = number(value)
        return amount is None or amount >= 0
    if key.removesuffix("_interval") not in SHARES:
        return True
    shares = map(number, value if isinstance(value, list) else [value])
    return all(share is None or 0 <= share <= 1 for share in shares)


def misnamed(record: Mapping[str, Any]) -> bool:
    """Whether the cell is another than the one that the id names, as after an edit by hand.

    As it stands (a later optional key leaves the id as it is) or as read (10 for 10.0). It is not known of another
    version of the format, nor of a record without id.
    """
    cell, name = record.get("cell"), record.get("id")
    if record.get("schema") != SCHEMA_VERSION or not isinstance(name, str):
        return False
    try:
        return name != content_hash(cell) and name != Cell.model_validate(cell).id
    except (ValidationError, RecursionError):
        return True
