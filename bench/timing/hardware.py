"""On what a timing was taken, and the refusal to compare it with one from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from adapters.errors import UserError
from bench.provenance import commit, provenance

SAME = ("device", "threads")
"""What two timings must share to be compared. Versions may differ: what they change is what one wants to see."""


def facts(device: torch.device) -> dict[str, Any]:
    """Device and versions, and ``load``: processes that wanted a CPU in the last minute, for each CPU there is."""
    source = provenance(device, commit())
    found = source.model_dump(include={"commit", "dirty", "python", "torch", "package", "device", "threads"})
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None
    return {**found, "load": None if load is None else round(load, 2)}


def check_same(here: Mapping[str, Any], there: Mapping[str, Any], where: str) -> None:
    """Raise ``UserError`` unless the facts ``there``, of a file called ``where``, are of hardware like ``here``."""
    for key in SAME:
        if here.get(key) != there.get(key):
            raise UserError(
                f"--benchmark-compare: {where} has {key} {there.get(key)!r}; expected {here.get(key)!r}, as here:"
                " times of different hardware do not compare"
            )
