"""What of a sweep runs at the same time: first cells that may have company, then those whose times are to compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.cells import Cell
from bench.spec import Resources, SweepPlan


class Phase(NamedTuple):
    """``cells`` under the same ``resources``. ``ahead``: cells of later phases whose victims are trained here."""

    cells: list[Cell]
    resources: Resources
    ahead: list[Cell]


def phases(plan: SweepPlan, left: Sequence[Cell]) -> list[Phase]:
    """The cells ``left`` of ``plan``, each in one phase; one at least.

    Of a file that includes others, the cells of those that ask for ``alone`` come after all others, whichever other
    files have them too, under the resources of the first file that does.
    """
    alone = alone_cells(plan)
    later: dict[Resources, list[Cell]] = {}
    for cell in left:
        if cell.id in alone:
            later.setdefault(alone[cell.id], []).append(cell)
    together = [cell for cell in left if cell.id not in alone]
    ahead = [cell for cells in later.values() for cell in cells]
    return [Phase(together, plan.resources, ahead), *(Phase(cells, own, []) for own, cells in later.items())]


def alone_cells(plan: SweepPlan) -> dict[str, Resources]:
    """By the ids of cells that run alone though the plan's cells do not: what they are granted."""
    parts = [part for part in plan.parts if part.resources.alone and not plan.resources.alone]
    return {cell.id: part.resources for part in reversed(parts) for cell in part.cells}
