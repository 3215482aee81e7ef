"""Table 6: seconds until a defense has taken effect, as multiples of I-BAU's, and what becomes of the paper's 13×."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from bench import published
from bench.report import beside, effectiveness, given, names, settings, sweep_files
from bench.report.groups import by, estimate, ordered, variants
from bench.report.rows import Row
from bench.report.tables import TO_EFFECT, Head, Table, Titled, Value, measured, spread

BASELINES = ("neural_cleanse", "deep_inspect", "tabor", "fine_pruning", "nad")
"""Those of the paper's Table 6."""
HEADS = ("Seconds to effect", "× I-BAU", "Cells with effect", "Seconds in all", "Passes an image")
MEANING = (
    "Effect: the first round with ASR under 20 % and at most 10 points of ACC lost, of a model that the defense may "
    "return: rounds of NAD's teacher do not count. The model that it did return must have it too. Mean over the cells "
    "that took effect{}; "
    "ours on the devices named above, the paper's over its seven cases, on its authors' GPU."
)


class Verdict(NamedTuple):
    """On a claim of the paper's: one of ``names.HOLDS``, ``IN_PART``, ``DOES_NOT``, and the figures it rests on."""

    word: str
    figures: str


def chosen(tried: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Table 6's rows: one-trigger one-target cases, triggers as they come, at the paper's setting; and notes.

    Those that diverged or ran out of time are cells without effect.
    """
    rows = [row for row in sweep_files.of_any(tried, "table6", "table1", "table2") if row.defense != "none"]
    single = [row for row in rows if row.one_trigger and row.target != beside.ALL_TO_ALL]
    return settings.at_the_papers([row for row in single if not row.changed_trigger])


def titled(rows: Sequence[Row], notes: Sequence[str]) -> Titled:
    """The table of ``rows``, at least one. A cell that never took effect has no second to enter the mean."""
    labels = variants(rows)
    members = {label: [row for row in rows if labels[row.id] == label] for label in ordered(rows, labels)}
    own = _yardstick(members)
    ratios = {label: _times(own, found) for label, found in members.items()}
    body = tuple(_line(label, found, ratios[label]) for label, found in members.items())
    told = [
        *notes,
        *given.note(rows),
        MEANING.format(spread(body)),
        *_passing(rows),
        *_company(rows),
        _multiples(own, members),
        _told(speedup(own, members)),
    ]
    told += [f"{sign} {text}" for sign, text in beside.SIGNS.items() if any(sign in row[1].published for row in body)]
    table = Table((Head("Defense", numeric=False), *map(Head, HEADS)), body, tuple(one for one in told if one))
    return Titled("6_seconds_to_effect", "Table 6 · Seconds to effect", table)


def _line(label: str, rows: Sequence[Row], ratio: tuple[float, int] | None) -> tuple[Value, ...]:
    told = _effective(rows)
    took = replace(measured(told, TO_EFFECT, names.seconds_name), published=beside.effect(rows))
    count = Value(f"{len(told)} of {len(rows)}", sort=len(told))
    ended = [row for row in rows if row.scored]
    seconds = measured(ended, "seconds", names.seconds_name)
    return Value(label), took, _ratio(rows, ratio), count, seconds, _images(ended)


def _ratio(rows: Sequence[Row], found: tuple[float, int] | None) -> Value:
    """Our multiple, on how many cells, and the paper's."""
    theirs = ""
    if beside.effect(rows):
        name = beside.original(rows[0].dataset)
        mine, own = (published.seconds_to_effect(name, one) for one in (rows[0].defense, "ibau"))
        theirs = f"{mine / own:.1f}{beside.signs_of(rows)}" if mine and own else ""
    if found is None:
        return Value("–", published=theirs)
    cells = "" if found[0] == 1 else f"{found[1]} {'cell' if found[1] == 1 else 'cells'}"
    return Value(f"{found[0]:.1f}", cells, theirs, sort=found[0])


def _effective(rows: Sequence[Row]) -> list[Row]:
    """Those that took effect in some round, and returned a model that has it."""
    return [row for row in rows if TO_EFFECT in row.figures and effectiveness.effective([row])]


def _passing(rows: Sequence[Row]) -> list[str]:
    lost = sum(TO_EFFECT in row.figures for row in rows) - len(_effective(rows))
    told = f"{lost} of {len(rows)} cells had effect in some round and not at the end; they count as without."
    return [told] if lost else []


def _yardstick(members: Mapping[str, Sequence[Row]]) -> Sequence[Row]:
    """The I-BAU that took effect most often; of several, the quickest."""

    def rank(rows: Sequence[Row]) -> tuple[int, float]:
        able = _effective(rows)
        found = estimate(able, TO_EFFECT)
        return len(able), -found.mean if found else -math.inf

    ours = [rows for rows in members.values() if rows[0].defense == "ibau" and _effective(rows)]
    return max(ours, key=rank, default=())


def _times(own: Sequence[Row], rows: Sequence[Row]) -> tuple[float, int] | None:
    """How many times as long as ``own`` the ``rows`` take, over the cells on which both had effect; how many these
    are. Only times of one device, and of as many threads, enter a ratio."""
    first, second = ({_case(row): row.figures[TO_EFFECT] for row in _effective(each)} for each in (own, rows))
    shared = first.keys() & second.keys()
    below = math.fsum(first[key] for key in shared)
    return (math.fsum(second[key] for key in shared) / below, len(shared)) if below > 0 else None


def _missed(own: Sequence[Row], rows: Sequence[Row]) -> int:
    """On how many cells some of ``rows`` had effect and ``own`` had none."""
    had = {_case(row) for row in _effective(own)}
    return len(({_case(row) for row in own} - had) & {_case(row) for row in _effective(rows)})


def _case(row: Row) -> Hashable:
    where = tuple(str(row.provenance.get(key, "")) for key in ("device", "threads"))
    return row.victim_key, row.clean_size, row.seed, row.cell.get("run"), where


def _multiples(own: Sequence[Row], members: Mapping[str, Sequence[Row]]) -> str:
    label = next((label for label, rows in members.items() if rows is own), "")
    same = (
        "on one device" if len(by(own, lambda row: str(row.provenance.get("device", "")))) <= 1 else "device by device"
    )
    return f"× I-BAU: multiples of {label}, {same}, over the cells on which both had effect." if label else ""


def _company(rows: Sequence[Row]) -> list[str]:
    """Times taken while other cells ran on the same machine say less."""
    crowded = sum(str(row.provenance.get("cells_beside", 0)) not in ("0", "") for row in rows)
    how = "`resources: {alone: true}` in a sweep file keeps a device for each."
    return [f"{crowded} of {len(rows)} cells had others running beside them; {how}"] if crowded else []


def speedup(own: Sequence[Row], members: Mapping[str, Sequence[Row]]) -> Verdict | None:
    """The 13× of ``own``, I-BAU, against the quickest of Table 6's baselines; None where none shares a cell with it.

    It does not hold in full where some baseline had effect on a cell of I-BAU's and I-BAU had none.
    ``members``: the rows of each defense by its label. Those that are no such baseline are told and decide nothing.
    """
    ratios = {label: ratio for label, rows in members.items() if (ratio := _times(own, rows))}
    rivals = [label for label in ratios if members[label][0].defense in BASELINES]
    if not rivals:
        return None
    label = min(rivals, key=lambda one: ratios[one][0])
    times, cells = ratios[label]
    missed = _missed(own, [row for each in rivals for row in members[each]])
    word = names.HOLDS if times > published.SPEEDUP and not missed else names.IN_PART if times > 1 else names.DOES_NOT
    kinds = len({members[each][0].defense for each in rivals})
    quickest = f"the quickest of {kinds} of the {len(BASELINES)} baselines in the paper's Table 6"
    others = [label for label in ratios if members[label][0].defense not in (*BASELINES, "ibau", "none")]
    told = ", ".join(f"{label} {ratios[label][0]:.1f}×" for label in others)
    figures = f"{times:.1f}× ({label}, {quickest}, {cells} shared cell{'s' * (cells > 1)})"
    if missed:
        figures += f"; no effect of I-BAU where a baseline had it: {missed} cell{'s' * (missed > 1)}"
    return Verdict(word, f"{figures}; not among them: {told}" if told else figures)


def _told(verdict: Verdict | None) -> str:
    """The paper's claim, what its own table gives, and what the records here give."""
    claim = (
        f"The paper: more than {published.SPEEDUP:g}× faster than the most efficient baseline. Its own Table 6 gives "
        + " and ".join(_published(name) for name in ("cifar10", "gtsrb"))
        + "."
    )
    if verdict is None:
        return f"{claim} Here: not known, for there is no cell on which both a baseline and I-BAU took effect."
    return f"{claim} Here: {verdict.figures}. The claim {verdict.word}."


def _published(dataset: str) -> str:
    found = published.most_efficient_baseline(dataset)
    assert found is not None
    title = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB"}[dataset]
    return f"{found[1]:.1f}× on {title} ({names.defense_name(found[0])})"


def _images(rows: Sequence[Row]) -> Value:
    """Forward and backward passes of an image, per clean image: time without a device."""
    with_passes = [
        replace(row, figures={"per_image": (row.figures["forward"] + row.figures["backward"]) / row.clean_size})
        for row in rows
        if row.clean_size and {"forward", "backward"} <= row.figures.keys()
    ]
    found = estimate(with_passes, "per_image")
    return Value("–") if found is None else Value(names.plain(round(found.mean, 1)), sort=found.mean, estimate=found)
