"""What a sweep would do: its files, its victims with their cells, and roughly how long they will take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cells import Cell
from bench.cluster import Grant, local_grant
from bench.estimate import Estimate, Pace, earlier
from bench.phases import Phase
from bench.preflight import Checked
from bench.progress import duration
from bench.records import Record
from bench.spec import SweepPlan
from bench.titles import told_apart

if TYPE_CHECKING:
    from bench.sweep import Options

COMMITTED = Path(__file__).resolve().parents[1] / "results"
"""Records of a checkout, besides those under ``--out``."""


def lines(
    plan: SweepPlan,
    left: Sequence[Cell],
    stages: Sequence[Phase],
    victims: Sequence[Cell],
    checked: Checked,
    options: Options,
) -> Iterator[str]:
    """The lines of ``--dry-run``.

    ``left`` are the cells without a record, ``stages`` the same as they run one after the other, ``victims`` those
    still to be trained. Raises ``UserError``, before the first line, where this machine has no room for a cell.
    """
    grants = _grants(stages, options) if left else []
    records, origin = _earlier(options, any(grant.gpu for grant in grants) if grants else None)
    pace = Pace(records, checked)
    if plan.parts:
        yield from _parts(plan, left)
    yield from _victims(left, victims, pace)
    yield f"dry run: {len(left)} cells would be computed, {len(victims)} victims trained; nothing was"
    if alone := sum(len(one.cells) for one in stages[1:]):
        yield (
            f"{alone} of them run after the others, each alone on a GPU, or without one on a machine, so that their"
            " times can be compared; --set resources.alone=false gives them company"
        )
    totals = [pace.total(one.cells, victims if one is stages[0] else []) for one in stages]
    yield _estimate(totals, [grant.workers for grant in grants], f"{len(records)} earlier records{origin}")


def _parts(plan: SweepPlan, left: Sequence[Cell]) -> Iterator[str]:
    """One line a file: how many cells it has, and how many of them no file before it has."""
    todo, seen = {cell.id for cell in left}, set[str]()
    for part in plan.parts:
        ids = {cell.id for cell in part.cells}
        new = ids - seen
        seen |= ids
        victims = len({cell.victim_id for cell in part.cells})
        counts = f"{len(ids)} cells on {victims} victims, {len(ids) - len(new)} of them in a file above"
        yield f"  {part.name}: {counts}, {len(new & todo)} more to compute"


def _victims(left: Sequence[Cell], missing: Sequence[Cell], pace: Pace) -> Iterator[str]:
    """One line a victim: whether it is to be trained, and the defenses that are to run on it."""
    named = {cell.victim_id: cell for cell in (*missing, *left)}
    untrained = {cell.victim_id for cell in missing}
    cells: dict[str, list[Cell]] = defaultdict(list)
    for one in left:
        cells[one.victim_id].append(one)
    for (name, cell), title in zip(named.items(), told_apart(list(named.values())), strict=True):
        own = cells[name]
        runs = Counter(str(one.defense["name"]) for one in own)
        listed = ", ".join(f"{defense} × {count}" if count > 1 else defense for defense, count in runs.items())
        about = pace.total(own, [cell] if name in untrained else [])
        state = "to train" if name in untrained else "at hand"
        told = f", about {duration(about.seconds)}" if not about.unknown else ""
        yield f"  {title} ({state}{told}): {listed or 'a trigger is fitted to it'}"


def _earlier(options: Options, gpu: bool | None) -> tuple[list[Record], str]:
    """Records of the kind of device that the sweep would run on, where there are any, and what is said of them."""
    folders = dict.fromkeys((options.out, COMMITTED))
    if gpu is None:
        return earlier(folders), ""
    alike = earlier(folders, gpu=gpu)
    here, there = ("a GPU", "CPUs") if gpu else ("a CPU", "GPUs")
    if alike or not (others := earlier(folders)):
        return alike, f" on {here}"
    return others, f" on {there}, since none is on {here}"


def _estimate(totals: Sequence[Estimate], workers: Sequence[int], records: str) -> str:
    """Of phases that run one after the other, each on as many workers; without any, of one worker."""
    spans = [total.seconds / count for total, count in zip(totals, workers or [1] * len(totals), strict=True)]
    if not any(spans):
        return "no estimate: no record of such cells under --out or in results/"
    unknown = sum(total.unknown for total in totals)
    rest = f"; {unknown} jobs of a kind that no record tells of are left out" if unknown else ""
    where = " and then ".join(f"{count} worker(s)" for count in workers)
    where = where or "one worker (how many the cluster has is not known before it is joined)"
    return f"estimate: {duration(sum(spans))} on {where}, from {records}, whatever machine they come from{rest}"


def _grants(stages: Sequence[Phase], options: Options) -> list[Grant]:
    """What the engine grants the cells of each stage here; none where a cluster is joined."""
    if options.address:
        return []
    return [local_grant(one.resources, options.max_concurrent) for one in stages]
