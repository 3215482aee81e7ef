"""``OUT/NAME/sweep.json``: which records belong to which sweep file, and what a budget left out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from adapters.errors import UserError
from bench.cells import SCHEMA_VERSION, Frozen
from bench.spec import SweepPlan
from bench.victim_files import write_json

FILE = "sweep.json"


class Part(Frozen):
    """One sweep file: its name, the ``reductions`` of its budget (empty at full size), the ids of its cells.

    ``overrides``: what the command line set after the budget. It may contradict the ``reductions``, so both are told.
    """

    name: str
    reductions: str = ""
    overrides: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()


class Manifest(Frozen):
    """The sweep files whose records lie in one folder, in the order in which they are included."""

    schema_version: Annotated[int, Field(alias="schema")] = SCHEMA_VERSION
    name: str
    budget: str | None = None
    parts: tuple[Part, ...] = ()


def of(plan: SweepPlan) -> Manifest:
    """What ``plan`` is to compute."""
    parts = tuple(_part(part) for part in plan.parts or (plan,))
    return Manifest(name=_base(plan), budget=plan.budget, parts=parts)


def _part(plan: SweepPlan) -> Part:
    ids = tuple(cell.id for cell in plan.cells)
    return Part(name=_base(plan), reductions=plan.reductions, overrides=plan.overrides, cells=ids)


def write(plan: SweepPlan, folder: Path) -> None:
    """Put ``plan`` in ``folder``'s manifest. What was there stays: the cells of an earlier run with the same overrides
    with their part, the parts of a run with others after the new ones."""
    merge(of(plan), folder)


def merge(new: Manifest, folder: Path) -> None:
    """The same for a manifest of another folder."""
    old = read(folder)
    known = {(part.name, part.overrides): part for part in old.parts} if old else {}
    parts = [
        part.model_copy(update={"cells": tuple(dict.fromkeys((*known.pop(key, part).cells, *part.cells)))})
        for part in new.parts
        for key in [(part.name, part.overrides)]
    ]
    merged = new.model_copy(update={"parts": (*parts, *known.values())})
    if merged != old:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, merged.model_dump(mode="json", by_alias=True))


def read(folder: Path) -> Manifest | None:
    """The manifest of a results folder; None where there is none. ``UserError`` for anything that is no manifest."""
    path = folder / FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        why = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path}: {why}; expected what bench.sweep wrote, or no such file") from error


def _base(plan: SweepPlan) -> str:
    return plan.name if plan.budget is None else plan.name.removesuffix(f"-{plan.budget}")
