"""From a sweep file to a plan: every combination of the grid as a validated cell, all defaults filled in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from adapters.errors import UserError
from bench import yamlfile
from bench.cells import Cell, Frozen
from bench.normalise import ATTACK_KEYS, KNOWN_KEYS, Normaliser
from bench.validation import validated

MAX_COMBINATIONS = 1_000_000
DEFAULT_SHARE = 0.25
"""Of a GPU, for one cell."""


class Resources(Frozen):
    """Ray resources of one cell. ``gpu`` is asked for only where there are GPUs; ``auto``: see ``bench.gpu_share``.

    ``alone``: for cells whose seconds are to be compared: each gets a GPU to itself, or where there is none a machine
    to itself, and nothing runs beside it there. ``cpu`` still says how many threads it has.
    """

    cpu: Annotated[float, Field(gt=0, le=1024)] = 1
    gpu: Annotated[float, Field(ge=0, le=64)] | Literal["auto"] = DEFAULT_SHARE
    alone: bool = False

    @property
    def share(self) -> float:
        """``gpu`` as a number."""
        return DEFAULT_SHARE if self.gpu == "auto" else self.gpu

    @property
    def threads(self) -> int:
        """Torch threads of one cell: one for each CPU granted."""
        return max(1, int(self.cpu))


class Budget(Frozen):
    """A smaller version of a sweep: ``set``, path of a key to its value (null removes it); ``reductions``, in words."""

    reductions: Annotated[str, Field(min_length=1)]
    set: Annotated[dict[str, Any], Field(min_length=1)]


class SweepFile(Frozen):
    """The file's six keys; what ``cell`` and ``grid`` hold is checked cell by cell."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    cell: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[int, Field(ge=1, le=100_000)] = 1
    resources: Resources = Resources()
    budgets: dict[str, Budget] = Field(default_factory=dict)


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep is to compute. ``cells`` are distinct, in the order of the grid; file paths in them are absolute.

    ``parts`` are the sweeps of a file that includes others (``bench.includes``), whose cells are theirs, each once.
    ``reductions``: what the budget it was loaded with takes away; empty without one. ``overrides`` came after it.
    """

    name: str
    cells: tuple[Cell, ...]
    combinations: int
    axes: tuple[str, ...]
    resources: Resources
    source: Path
    data_root: Path
    sources: Mapping[str, str] = field(default_factory=dict)
    budget: str | None = None
    reductions: str = ""
    overrides: tuple[str, ...] = ()
    parts: tuple[SweepPlan, ...] = ()

    def key(self, name: str) -> str:
        """Where the sweep file sets ``name``: ``grid.NAME`` for an axis, else ``cell.NAME``. Names it in an error.

        A part of what an axis sets lies under it (``grid.attack.alpha``, where the axis is ``attack``).
        """
        steps = name.split(".")
        for end in range(len(steps), 0, -1):
            if axis := self.sources.get(".".join(steps[:end])):
                return ".".join([axis, *steps[end:]])
        return f"cell.{name}"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the files that cells name are looked for, and what their paths in a record are relative to."""
        return tuple(dict.fromkeys((self.data_root, self.source.parent, *(part.source.parent for part in self.parts))))


def load(path: Path, overrides: Sequence[str], data_root: Path, budget: str | None = None) -> SweepPlan:
    """The plan of the sweep file at ``path``: its ``budget`` applied, then each ``KEY=VALUE`` of ``overrides``.

    Files that cells name (checkpoints, trigger images) are looked for as given, seen from the working directory,
    then in the sweep file's folder, then under ``data_root``. A budget's name is added to the sweep's. Raises
    ``UserError`` naming the key, the value found and what was expected.
    """
    path = path.absolute()
    tree = yamlfile.read(path)
    reductions = ""
    if budget is not None:
        tree, reductions = _reduced(tree, budget)
    tree = yamlfile.override(tree, overrides)
    if "grid" in tree and not tree["grid"]:
        raise UserError(f"grid: found {tree['grid']!r}; expected at least one axis, or no grid at all")
    file = validated(SweepFile, tree, "")
    _check_keys(file)
    sources = {part: _source(axis, part) for axis in file.grid for part in _parts(axis)}
    plan = SweepPlan(
        name=file.name if budget is None else f"{file.name}-{budget}",
        budget=budget,
        reductions=reductions,
        overrides=tuple(overrides),
        cells=(),
        combinations=math.prod(len(values) for values in file.grid.values()) * file.seeds,
        axes=tuple(file.grid),
        resources=file.resources,
        source=path,
        data_root=data_root.absolute(),
        sources=sources,
    )
    if plan.combinations > MAX_COMBINATIONS:
        raise UserError(f"grid: {plan.combinations} combinations; expected at most {MAX_COMBINATIONS}")
    normaliser = Normaliser(plan.key, plan.folders)
    cells = {cell.id: cell for cell in _expand(file, normaliser)}
    _check_used(file, normaliser.used, cells.values())
    return replace(plan, cells=tuple(cells.values()))


def _reduced(tree: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """``tree`` with the budget called ``name`` applied, and what it says of itself."""
    file = validated(SweepFile, tree, "")
    if name not in file.budgets:
        known = f"one of: {', '.join(file.budgets)}" if file.budgets else "none, the file has no budgets"
        raise UserError(f"--budget: found {name!r}; expected {known}")
    budget = file.budgets[name]
    for path, value in budget.set.items():
        where = f"budgets.{name}.set.{path}"
        if path.split(".")[0] not in ("cell", "grid", "seeds", "resources") or not all(path.split(".")):
            raise UserError(f"{where}: unknown key; expected the path of one in cell, grid, seeds or resources")
        tree = yamlfile.assign(tree, path, value, f"budgets.{name}.set")
    return tree, " ".join(budget.reductions.split())


def _parts(axis: str) -> tuple[str, ...]:
    """The keys an axis sets: one, or several that change together, as in ``"dataset, victim"``."""
    return tuple(part.strip() for part in axis.split(","))


def _check_keys(file: SweepFile) -> None:
    for key in file.cell:
        _check_key(key, f"cell.{key}")
    for axis, values in file.grid.items():
        for part in _parts(axis):
            _check_key(part.split(".")[0], f"grid.{axis}")
        if not isinstance(values, list) or not values:
            raise UserError(f"grid.{axis}: found {values!r}; expected a list of at least one value")
        _check_rows(axis, values)
    _check_conflicts(file)


def _source(axis: str, part: str) -> str:
    """Where ``part`` of ``axis`` is set; of an axis of several keys with which of them it is."""
    return f"grid.{axis}" if axis == part else f"grid.{axis} ({part})"


def _check_key(key: str, where: str) -> None:
    if key == "seed":
        raise UserError(f"{where}: unknown key; expected the number of repetitions at the top level, as seeds: 3")
    if key not in KNOWN_KEYS:
        raise UserError(f"{where}: unknown key; expected one of: {', '.join(KNOWN_KEYS)}")


def _check_rows(axis: str, values: list[Any]) -> None:
    width = len(_parts(axis))
    for row in values if width > 1 else []:
        if not isinstance(row, list) or len(row) != width:
            raise UserError(f"grid.{axis}: found {row!r}; expected a list of {width} values, one for each key")


def _check_conflicts(file: SweepFile) -> None:
    """What sets a key twice: nothing would use the one value or the other."""
    parts = [(part, axis) for axis in file.grid for part in _parts(axis)]
    for part, axis in parts:
        node: Any = file.cell
        for step in part.split("."):
            node = node.get(step) if isinstance(node, Mapping) else None
        if node is not None:
            raise UserError(f"cell.{part}: unused key, found {node!r}; expected it here or as grid.{axis}, not both")
    for (part, axis), (other, second) in itertools.permutations(parts, 2):
        if other == part or other.startswith(f"{part}."):
            raise UserError(f"grid.{second}: unused key; grid.{axis} sets {part} too; expected one of the two")


def _check_used(file: SweepFile, used: set[str], cells: Collection[Cell]) -> None:
    """A key that no cell of the sweep uses is a mistake: what its author meant it to do does not happen."""
    axes = [(part.split(".")[0], f"grid.{axis}") for axis in file.grid for part in _parts(axis)]
    for key, where in [*((key, f"cell.{key}") for key in file.cell), *axes]:
        if key not in used:
            raise UserError(f"{where}: unused key; expected it to be left out, for {_why_unused(key, cells)}")


def _why_unused(key: str, cells: Collection[Cell]) -> str:
    if key == "clean_label":
        return "it is for one trigger with one target, and this sweep has none"
    if key == "mix":
        return "it is for a list of attacks, and this sweep has none"
    if key == "min_asr":
        return "a clean model (attack: none) has no ASR to reach"
    if key not in ATTACK_KEYS:
        return "no defense of this sweep uses it"
    reasons = {
        f"a clean model (attack: none) has no {key}": any(cell.is_clean for cell in cells),
        "a victim from a checkpoint brings its own": any(cell.victim is not None for cell in cells),
        "a list of attacks brings its own": any(isinstance(cell.attack, tuple) for cell in cells),
    }
    return ", and ".join(reason for reason, holds in reasons.items() if holds)


def _expand(file: SweepFile, normaliser: Normaliser) -> Iterator[Cell]:
    for values in itertools.product(*file.grid.values()):
        tree = dict(file.cell)
        for axis, value in zip(file.grid, values, strict=True):
            parts = _parts(axis)
            for part, one in zip(parts, value if len(parts) > 1 else [value], strict=True):
                _set(tree, part, one)
        first = normaliser.cell(tree, 0)
        yield first
        for seed in range(1, file.seeds):  # nothing else of a cell depends on it, so nothing is checked again
            yield first.model_copy(update={"seed": seed})


def _set(tree: dict[str, Any], axis: str, value: Any) -> None:
    """Set the key called ``axis``, copying what lies on the way: the file's own tree stays as it is."""
    *parents, last = axis.split(".")
    for part in parents:
        child = tree.get(part, {})
        if not isinstance(child, dict):
            raise UserError(f"grid.{axis}: {part} is {child!r}; expected a mapping whose keys can be axes")
        tree[part] = dict(child)
        tree = tree[part]
    tree[last] = value
