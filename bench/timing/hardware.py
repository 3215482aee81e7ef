"""On what a timing was taken, and the refusal to compare it with one from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from adapters.errors import UserError
from bench.provenance import commit, provenance
from bench.records import Origin

SAME = ("device", "threads")
"""What two timings must share to be compared. Versions may differ: what they change is what one wants to see."""


def facts(device: torch.device) -> dict[str, Any]:
    """Device and versions, and ``load``: processes that wanted a CPU in the last minute, for each CPU there is."""
    source = provenance(device, commit())
    found = source.model_dump(include=set(Origin.model_fields))
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None
    return {**found, "load": None if load is None else round(load, 2)}


def check_same(here: Mapping[str, Any], there: Mapping[str, Any], where: str, key: str = "--benchmark-compare") -> None:
    """Raise ``UserError``, naming ``key``, unless the facts ``there``, of ``where``, are of hardware like ``here``."""
    for fact in SAME:
        if here.get(fact) != there.get(fact):
            raise UserError(
                f"{key}: {where} has {fact} {there.get(fact)!r}; expected {here.get(fact)!r}, as here:"
                " times of different hardware do not compare"
            )
