"""The paper's claims about I-BAU, each with the verdict of the records at hand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from bench import published
from bench.intervals import Z
from bench.report import effect, effectiveness, gaps, names, ratios, settings, sweep_files
from bench.report.effect import Verdict
from bench.report.groups import by, estimate, ordered, variants
from bench.report.names import DOES_NOT, HOLDS, IN_PART, UNDECIDED
from bench.report.rows import Row
from bench.report.tables import Head, Table, Titled, Value

FEW_IMAGES = 100
NOTE = (
    "Effective: mean ASR under 20 % and at most 10 points of ACC lost, in no repetition diverged or out of time. A "
    "verdict is on these records alone, compares means, and is missing where they do not bear on the claim; intervals "
    "and conditions stand in the tables. It is on the recipe it names: fast, where none is named, is ours and has many "
    "starts and no implicit term, which the paper's algorithm has."
)


@dataclass(frozen=True)
class Evidence:
    """The records of one way to run I-BAU beside those of all other defenses, by their names: scored, diverged or out
    of time."""

    ours: str
    rows: Mapping[str, Sequence[Row]]
    timed: frozenset[str]
    """The ids of the records that Table 6 is made of."""

    @property
    def others(self) -> list[str]:
        return [name for name in self.rows if name != self.ours]


Claim = Callable[[Evidence], Verdict | None]


def claims(tried: Sequence[Row]) -> Titled | None:
    """A line for each claim that the records bear on, and for each way I-BAU was run; None if there is none."""
    rows, _ = settings.at_one_radius([row for row in tried if row.defense != "none"])
    labels = variants(rows)
    named = by(rows, lambda row: labels[row.id])
    ours = [name for name in ordered(rows, labels) if named[name][0].defense == "ibau"]
    timed = frozenset(row.id for row in effect.chosen(tried)[0])
    others = {name: each for name, each in named.items() if each[0].defense != "ibau"}
    body = []
    for text, judge in CLAIMS:
        for name in ours:
            verdict = judge(Evidence(name, {name: named[name], **others}, timed))
            if verdict:
                body.append((Value(text, name if len(ours) > 1 else ""), Value(verdict.word), Value(verdict.figures)))
    heads = (Head("Claim", numeric=False), Head("Verdict", numeric=False), Head("Figures", numeric=False))
    return (
        Titled("claims", "The paper's claims, by these records", Table(heads, tuple(body), (NOTE,))) if body else None
    )


def least_sensitive_to_poison_ratio(found: Evidence) -> Verdict | None:
    """Effective at every ratio, and its ASR varies no more than that of any baseline effective at one of them.

    Over the ratios at which both ran. A baseline that breaks down at one of them is not steady. What is effective at
    no ratio is not steady either, however even its ASR: of I-BAU the claim then does not hold, of a baseline it decides
    nothing.
    """
    kept, _ = settings.along([row for rows in found.rows.values() for row in rows], ratios.AXIS)
    ids = {row.id for row in kept}
    at = {name: ratios.places([row for row in rows if row.id in ids]) for name, rows in found.rows.items()}
    own = at[found.ours]
    whole = ratios.widest(own, own.keys())
    spans = {name: span for name in found.others if (span := ratios.spans(own, at[name]))}
    baselines = {name for name in spans if found.rows[name][0].defense in published.BASELINES}
    if whole is None or not baselines:
        return None
    beside = [name for name in spans if any(map(effectiveness.effective, at[name].values()))]
    rivals = [name for name in beside if name in baselines]
    broken = {name for name in beside for rows in at[name].values() for row in rows if not row.scored}
    steadier = [ours <= theirs for ours, theirs in (spans[name] for name in rivals if name not in broken)]
    told = {name: ratios.variation(name, spans[name], (found.ours, whole), name in broken) for name in beside}
    figures = "; ".join([f"{found.ours} {names.points(whole)}", *(told[name] for name in rivals)])
    more = _besides([told[name] for name in beside if name not in rivals])
    none = "" if rivals else "; no baseline is effective at any"
    good = [effectiveness.effective(rows) for rows in own.values()]
    able, least = all(good), bool(rivals) and all(steadier)
    word = HOLDS if able and all(steadier) else IN_PART if any(good) and (able or least) else DOES_NOT
    return Verdict(word, f"ASR varies with the ratio by, at most: {figures}{none}{more}; {_of_six(rivals, found)}")


def effective_at_few_images(found: Evidence) -> Verdict | None:
    """Effective in every attack case at 100 clean images; without records there, at the largest n below it."""
    few = _few(found)
    counts = {
        name: effectiveness.count([row for row in rows if row.clean_size == few]) for name, rows in found.rows.items()
    }
    able, of = counts[found.ours]
    if few is None:
        return None
    told = [f"{name} {good} of {all_}" for name, (good, all_) in counts.items() if all_]
    return Verdict(HOLDS if able == of else IN_PART if able else DOES_NOT, f"{_at(few)}effective in: {'; '.join(told)}")


def only_one_effective_at_few_images(found: Evidence) -> Verdict | None:
    """Effective in every attack case at 100 clean images (without records there, at the largest n below it), and none
    of the paper's baselines in any that both ran in; in part if it is effective in more of these than each of them."""
    few = _few(found)
    if few is None:
        return None
    ours = effectiveness.outcomes([row for row in found.rows[found.ours] if row.clean_size == few])
    shared = {name: each for name in found.others if (each := effectiveness.outcomes(found.rows[name], ours.keys()))}
    rivals = [name for name in shared if found.rows[name][0].defense in published.BASELINES]
    if not rivals:
        return None
    alone = all(ours.values()) and not any(any(shared[name].values()) for name in rivals)
    word = HOLDS if alone else IN_PART if _ahead(ours, [shared[name] for name in rivals]) else DOES_NOT
    return Verdict(word, _at(few) + _compared(ours, shared, rivals, found))


def only_one_effective_everywhere(found: Evidence) -> Verdict | None:
    """Effective in all settings, where every one of the paper's baselines fails in some that both ran in; in part if
    it is effective in all, or in more of these than each of them."""
    ours = effectiveness.outcomes(found.rows[found.ours])
    shared = _in_several({name: effectiveness.outcomes(found.rows[name], ours.keys()) for name in found.others}, found)
    rivals = [name for name in shared if found.rows[name][0].defense in published.BASELINES]
    if not rivals:
        return None
    able = all(ours.values())
    alone = able and not any(all(shared[name].values()) for name in rivals)
    ahead = able or _ahead(ours, [shared[name] for name in rivals])
    return Verdict(HOLDS if alone else IN_PART if ahead else DOES_NOT, _compared(ours, shared, rivals, found))


def more_stable_than_naive(found: Evidence) -> Verdict | None:
    """Over runs that differ in seed or run alone, its ASR ranges less than that of naive adversarial training; of
    several ways to do that, than that of each. In how many runs each is effective is told: what never is may be steady.
    """
    ours = effectiveness.spans(found.rows[found.ours])
    naive = {name: effectiveness.spans(rows) for name, rows in found.rows.items() if rows[0].defense == "naive_uap"}
    shared = [(name, ours[key], spans[key]) for name, spans in naive.items() for key in ours.keys() & spans.keys()]
    if not shared:
        return None
    less = [mine < theirs for _, mine, theirs in shared]

    def runs(name: str) -> str:
        among = ours.keys() & naive[name].keys()
        counts = (effectiveness.effective_runs(found.rows[each], among) for each in (found.ours, name))
        return " runs against ".join(counts)

    told = [
        f"{names.points(max(mine for _, mine, _ in each))} against {names.points(max(theirs for *_, theirs in each))}"
        f"{f' ({name})' if len(naive) > 1 else ''}; {len(each)} case{'s' * (len(each) > 1)}; effective in {runs(name)}"
        for name, each in by(shared, lambda one: one[0]).items()
    ]
    word = HOLDS if all(less) else IN_PART if any(less) else DOES_NOT
    return Verdict(word, f"range of ASR over runs, at most: {'; '.join(told)}")


def thirteen_times_faster(found: Evidence) -> Verdict | None:
    """Seconds to effect on the cells shared with the quickest of Table 6's baselines, as under Table 6."""
    timed = {name: [row for row in rows if row.id in found.timed] for name, rows in found.rows.items()}
    return effect.speedup(timed[found.ours], {name: rows for name, rows in timed.items() if rows})


def gap_falls_with_width(found: Evidence) -> Verdict | None:
    """Table 7: the wider the network, the smaller the error gap. (Theorem 3 does not say so: docs/theory.md.)"""
    rows = sweep_files.of(found.rows[found.ours], "table7")
    return _falling(gaps.over_width(rows), gaps.width_of, "W", "model", "training")


def gap_falls_with_clean_images(found: Evidence) -> Verdict | None:
    """Table 8: the more clean images, the smaller the error gap."""
    rows = sweep_files.of(found.rows[found.ours], "table8", "table7")
    return _falling(gaps.over_size(rows), lambda row: row.clean_size, "n")


CLAIMS: tuple[tuple[str, Claim], ...] = (
    ("Least sensitive to the poison ratio (Table 4)", least_sensitive_to_poison_ratio),
    ("Effective with 100 clean images (Table 5)", effective_at_few_images),
    ("The only defense effective with 100 clean images (abstract)", only_one_effective_at_few_images),
    ("The only defense effective in all settings (Section 7)", only_one_effective_everywhere),
    ("More stable than the naive heuristic (Figure 1)", more_stable_than_naive),
    ("More than 13 times faster than the most efficient baseline (abstract)", thirteen_times_faster),
    ("The error gap falls with the width (Table 7)", gap_falls_with_width),
    ("The error gap falls with the clean images (Table 8)", gap_falls_with_clean_images),
)


def _falling(rows: Sequence[Row], axis: Callable[[Row], float | None], symbol: str, *varied: str) -> Verdict | None:
    """Over the records whose backdoor is gone: where it is not, all triggered images err, seen or unseen, and the gap
    is 0 for want of a defense. Victims that differ in anything but ``varied`` are looked at one by one. Undecided where
    no gap is beyond what sampling alone gives in 95 of 100 cases."""
    placed = [row for row in rows if axis(row) is not None]
    cured = [row for row in placed if effectiveness.effective([row])]
    curves = {key: _curve(each, axis) for key, each in by(cured, lambda row: row.victim_but(*varied)).items()}
    curves = {key: curve for key, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    falls = [[later.gap <= earlier.gap for earlier, later in pairwise(curve)] for curve in curves.values()]
    ends = [curve[-1].gap < curve[0].gap for curve in curves.values()]
    words = [", ".join(point.told(symbol) for point in curve) for curve in curves.values()]
    told = "; ".join(words) if len(words) == 1 else "; ".join(f"victim {k}: {one}" for k, one in enumerate(words, 1))
    left = len(placed) - len(cured)
    told += f"; left out, for the defense had no effect: {left} of {len(placed)} records" if left else ""
    word = HOLDS if all(map(all, falls)) and all(ends) else IN_PART if any(ends) else DOES_NOT
    if not any(point.beyond_chance for curve in curves.values() for point in curve):
        word = UNDECIDED
    return Verdict(word, f"error gap in percent: {told}")


class _Point(NamedTuple):
    """Mean error gap at one value of an axis, and the error that sampling gives it."""

    at: float | None
    gap: float
    error: float | None

    @property
    def beyond_chance(self) -> bool:
        return self.error is None or self.gap > Z * self.error

    def told(self, symbol: str) -> str:
        chance = "" if self.error is None else f" (by chance {names.percent(gaps.expected(self.error), 2)})"
        return f"{names.percent(self.gap, 2)} at {symbol} = {names.plain(self.at)}{chance}"


def _curve(rows: Sequence[Row], axis: Callable[[Row], float | None]) -> list[_Point]:
    """In the order of ``axis``."""
    known = by(rows, axis)
    points = [(at, estimate(known[at], "error_gap")) for at in sorted(known, key=lambda at: at or 0.0)]
    return [_Point(at, found.mean, gaps.sampling_error(known[at])) for at, found in points if found]


def _besides(told: Sequence[str]) -> str:
    """What controls do, and defenses of one's own: no rivals, but to be read beside them."""
    return f"; not among the paper's baselines: {', '.join(told)}" if told else ""


def _few(found: Evidence) -> float | None:
    """The largest n of I-BAU's that is no more than 100."""
    sizes = {row.clean_size for row in found.rows[found.ours] if row.clean_size is not None}
    return max((size for size in sizes if size <= FEW_IMAGES), default=None)


def _at(few: float) -> str:
    return "" if few == FEW_IMAGES else f"at n = {names.plain(few)}: "


def _in_several(
    shared: Mapping[str, Mapping[effectiveness.Setting, bool]], found: Evidence
) -> dict[str, Mapping[effectiveness.Setting, bool]]:
    """Those of defenses that share several settings with ours, however their ways to run share these out.

    Being effective in the only setting of a way is no claim to all of them; failing in it counts.
    """
    spread: dict[str, set[effectiveness.Setting]] = {}
    for name, each in shared.items():
        spread.setdefault(found.rows[name][0].defense, set()).update(each)
    several = {name: each for name, each in shared.items() if len(spread[found.rows[name][0].defense]) > 1}
    return {name: each for name, each in several.items() if len(each) > 1 or not all(each.values())}


def _ahead(ours: Mapping[effectiveness.Setting, bool], rivals: Sequence[Mapping[effectiveness.Setting, bool]]) -> bool:
    """Whether ours is effective in more settings than each rival, of those that the rival ran in."""
    return all(sum(each.values()) < sum(ours[key] for key in each) for each in rivals)


def _compared(
    ours: Mapping[effectiveness.Setting, bool],
    shared: Mapping[str, Mapping[effectiveness.Setting, bool]],
    rivals: Sequence[str],
    found: Evidence,
) -> str:
    """In how many settings each is effective: ours, the paper's baselines, and what else there is."""
    told = {name: f"{name} {_told(each, ours, found.ours)}" for name, each in shared.items()}
    figures = "; ".join([f"{found.ours} {_told(ours, ours, '')}", *(told[name] for name in rivals)])
    more = _besides([text for name, text in told.items() if name not in rivals])
    return f"effective in: {figures}{more}; {_of_six(rivals, found)}"


def _of_six(names_: Collection[str], found: Evidence) -> str:
    """How many of the paper's baselines the verdict rests on."""
    kinds = {found.rows[name][0].defense for name in names_}
    return f"beside {len(kinds)} of the paper's {len(published.BASELINES)} baselines"


def _told(outcomes: Mapping[effectiveness.Setting, bool], ours: Mapping[effectiveness.Setting, bool], name: str) -> str:
    """``3 of 4``; of fewer settings than ours with what I-BAU, ``name``, does in these."""
    there = f" (there {name} {sum(ours[key] for key in outcomes)})" if len(outcomes) < len(ours) else ""
    return f"{sum(outcomes.values())} of {len(outcomes)}{there}"
