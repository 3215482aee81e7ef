"""The error gap of defended models over the network's width and over n (Tables 7 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from bench.report import cases, gaps, names
from bench.report.figures.sensitivity import Axis, curve, lines
from bench.report.figures.series import Plot, series
from bench.report.groups import by, variants
from bench.report.rows import Row

_WIDTH: Axis = ("width", "width W", names.plain)
_SIZE: Axis = ("clean_size", "clean images n", names.plain)


def by_width(scored: Sequence[Row]) -> list[Plot]:
    """A line for each I-BAU variant and each family of victims alike but for the network, where W is known."""
    return _drawn(gaps.over_width(scored), lambda row: row.victim_but("model", "training"), gaps.width_of, _WIDTH)


def by_size(scored: Sequence[Row]) -> list[Plot]:
    """A line for each I-BAU variant and each victim."""
    return _drawn(gaps.over_size(scored), lambda row: row.victim_key, lambda row: row.clean_size, _SIZE)


def _drawn(
    rows: Sequence[Row], alike: Callable[[Row], Hashable], place: Callable[[Row], float | None], axis: Axis
) -> list[Plot]:
    named = variants(rows)
    victims = list(by(rows, alike).values())
    attacks = [cases.attack_text(members[0]) for members in victims]
    labels: dict[str, str] = {}
    for number, (attack, members) in enumerate(zip(attacks, victims, strict=True), 1):
        told = "" if len(victims) == 1 else f", {attack}" + (f" ({number})" if attacks.count(attack) > 1 else "")
        labels |= {row.id: named[row.id] + told for row in members}
    shown = series(rows, labels)
    found = lines(shown, place)
    return [curve(shown, found, "error_gap", axis, "gap")] if found else []
