"""What jobs are called in a dry run, in the display of a running sweep and in its lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from bench.cells import NOT_OF_THE_VICTIM, Cell, ImageTrigger, file_title, title
from bench.jobs import Job


def describe(job: Job) -> str:
    """The job in a few words: what distinguishes it from its neighbours."""
    cell = job.cell
    parts = [cell.dataset, cell.model, _attack(cell)]
    if cell.poison_ratio is not None:
        parts.append(f"poison {cell.poison_ratio:g}")
    if job.kind == "cell":
        parts += [f"n {cell.clean_size}"] if cell.clean_size is not None else []
        parts += [f"C_δ {cell.radius:g}"] if cell.radius is not None else []
    parts.append(f"seed {cell.seed}")
    head = "victim" if job.kind == "victim" else str(cell.defense["name"])
    return f"{head}: {', '.join(parts)}"


def _attack(cell: Cell) -> str:
    if cell.is_clean:
        return "clean"
    if cell.victim is not None:
        return file_title(cell.victim.checkpoint)
    if isinstance(cell.attack, tuple):
        return f"{len(cell.attack)} triggers"
    if isinstance(cell.attack, ImageTrigger):
        return title(cell.attack)
    return f"{title(cell.attack or '')} → {cell.target}"


def told_apart(victims: Sequence[Cell]) -> Iterator[str]:
    """The victims' descriptions; to those that several share, what else distinguishes them is added."""
    names = [describe(Job("victim", cell, cell.victim_id, cell.victim_id)) for cell in victims]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, cell in zip(names, victims, strict=True):
        groups[name].append(dict(_leaves(cell.model_dump(exclude=NOT_OF_THE_VICTIM))))
    apart = {name: _differences(group) for name, group in groups.items()}
    for name in names:
        own = groups[name].pop(0)
        told = (f"{key} {own[key]}" for key in apart[name] if own.get(key) is not None)
        yield ", ".join([name, *told])


def _differences(group: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that not all have alike, but for digests: the path beside one says more."""
    names = dict.fromkeys(name for one in group for name in one if not name.endswith("digest"))
    return [name for name in names if len({one.get(name) for one in group}) > 1]


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each plain value of a tree by its path, ``training.epochs``."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else None
    if inside is None:
        yield path, tree
        return
    for key, value in inside:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
