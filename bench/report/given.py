"""Settings that all runs of a defense share, where no name of it tells them: those that are not its defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from adapters.defenses import DEFENSES
from bench.report import names
from bench.report.groups import by, ordered
from bench.report.rows import Row
from bench.report.values import canonical


def note(rows: Sequence[Row]) -> list[str]:
    """A note on the defenses of ``rows``, or none. Settings that vary among the rows are in the names there
    (``groups.variants``); I-BAU's recipe is told even where it is the default."""
    alike = by(rows, lambda row: row.defense)
    told = []
    for defense in ordered(rows, {row.id: row.defense for row in rows}):
        shared = _shared(alike[defense])
        text = ", ".join(f"{key} {names.text_of(value)}" for key, value in shared.items())
        told += [f"{names.defense_name(defense)} {text}"] if text else []
    return [f"Settings: {'; '.join(told)}. Others stand with a defense's name or are its defaults."] if told else []


def _shared(rows: Sequence[Row]) -> dict[str, Any]:
    """By name, the recipe first."""
    first, defaults = rows[0], _defaults(rows[0].defense)
    return {
        key: value
        for key, value in sorted(first.settings.items(), key=lambda item: (item[0] != "recipe", item[0]))
        if value is not None
        and (key == "recipe" or key not in defaults or defaults[key] != value)
        and len({canonical(row.settings.get(key)) for row in rows}) == 1
    }


@cache
def _defaults(defense: str) -> Mapping[str, Any]:
    """As JSON has them; none of a defense that nobody here knows."""
    fields = DEFENSES[defense].model_fields if defense in DEFENSES else {}
    return {key: json.loads(canonical(field.get_default(call_default_factory=True))) for key, field in fields.items()}
