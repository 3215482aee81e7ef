"""A sweep file that includes others: their sweeps as one plan, in which a cell of several files is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from adapters.errors import UserError
from bench import spec, yamlfile
from bench.cells import Frozen
from bench.spec import Resources, SweepPlan
from bench.validation import in_file, validated

OWN_KEYS = ("name", "include", "resources")


class IncludingFile(Frozen):
    """The keys of a file that includes others; its cells are theirs, and so are ``seeds`` and ``budgets``.

    ``include``: paths, seen from the file's own folder. ``resources`` are those of every cell, whatever the included
    files ask for when they are run by themselves; but where this file does not say ``alone``, cells of a file that
    does run under the resources of that file, after the others (``bench.phases``).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    include: Annotated[list[str], Field(min_length=1)]
    resources: Resources = Resources()


def load(path: Path, overrides: Sequence[str], data_root: Path, budget: str | None = None) -> SweepPlan:
    """The plan of any sweep file: as ``spec.load``, and where the file includes others, of all of them.

    ``overrides`` of ``name``, ``include`` and ``resources`` are the including file's own, all others go to every
    included file. Raises ``UserError``, naming the included file at fault.
    """
    path = path.absolute()
    tree = yamlfile.read(path)
    if "include" not in tree:
        return spec.load(path, overrides, data_root, budget)
    own = [text for text in overrides if text.partition("=")[0].split(".")[0].strip() in OWN_KEYS]
    file = _including(tree, own)
    rest = [text for text in overrides if text not in own]
    parts = tuple(_part(one, path, rest, data_root, budget) for one in _leaves(path, file, ()))
    if "alone" in file.resources.model_fields_set:
        parts = tuple(_with_alone(part, file.resources.alone) for part in parts)
    _check_distinct(parts)
    cells = {cell.id: cell for part in parts for cell in part.cells}
    shared = set.intersection(*(set(part.sources.items()) for part in parts))
    return SweepPlan(
        name=file.name if budget is None else f"{file.name}-{budget}",
        cells=tuple(cells.values()),
        combinations=sum(part.combinations for part in parts),
        axes=(),
        resources=file.resources,
        source=path,
        data_root=data_root.absolute(),
        sources=dict(shared),
        budget=budget,
        parts=parts,
    )


def _including(tree: dict[str, Any], overrides: Sequence[str] = ()) -> IncludingFile:
    return validated(IncludingFile, yamlfile.override(tree, overrides), "")


def _leaves(path: Path, file: IncludingFile, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files with cells, in order; those that include others themselves are followed."""
    above = (*above, path.resolve())
    for name in file.include:
        child = (path.parent / name).absolute()
        if child.resolve() in above:
            chain = " → ".join(one.name for one in (*above, child.resolve()))
            raise UserError(f"include: {chain} is a cycle; expected files that do not include themselves")
        tree = yamlfile.read(child)
        if "include" in tree:
            with in_file(child):
                included = _including(tree)
            yield from _leaves(child, included, above)
        else:
            yield child


def _part(path: Path, root: Path, overrides: Sequence[str], data_root: Path, budget: str | None) -> SweepPlan:
    with in_file(path):
        return spec.load(path, overrides, data_root, budget)


def _with_alone(part: SweepPlan, alone: bool) -> SweepPlan:
    return replace(part, resources=part.resources.model_copy(update={"alone": alone}))


def _check_distinct(parts: Sequence[SweepPlan]) -> None:
    for number, part in enumerate(parts):
        for other in parts[:number]:
            if part.source.resolve() == other.source.resolve():
                raise UserError(f"include: {part.source.name} is included twice; expected each file once")
            if part.name == other.name:
                files = f"{other.source.name} and {part.source.name}"
                raise UserError(f"include: {files} are both called {part.name!r}; expected names that differ")
