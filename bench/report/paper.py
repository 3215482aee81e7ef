"""The paper's Tables 1-8 in its own layouts, as far as there are records for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.report import beside, cases, claims, effect, gaps, given, names, settings, sweep_files
from bench.report.cases import Line
from bench.report.groups import Group, by, ordered, variants
from bench.report.rows import Row
from bench.report.tables import Head, Table, Titled, Value, measured, summary
from bench.report.triggers_table import triggers

NUMBERS = {"cifar10": "Table 1", "gtsrb": "Table 2"}


def tables(group: Group) -> tuple[Titled, ...]:
    """The verdicts on the paper's claims, those of its tables that scored records fill, and three of our own."""
    scored = group.scored
    made = [
        claims.claims(group.tried),
        _attack_cases(sweep_files.of(scored, "table1", "table2")),
        _several_triggers(sweep_files.of(scored, "table3")),
        _poison_ratios(sweep_files.of(scored, "table4", "table1")),
        _clean_sizes(sweep_files.of(scored, "table5", "table1")),
        _seconds_to_effect(group.tried),
        gaps.by_width(sweep_files.of(scored, "table7")),
        gaps.by_size(sweep_files.of(scored, "table8", "table7")),
        _radii(sweep_files.of(scored, "c_delta")),
        _ablation([row for row in scored if "ablation" in row.parts]),
        _clean_models([row for row in group.rows if row.measured and row.is_clean]),
    ]
    return tuple(each for each in made if each is not None)


def _attack_cases(scored: Sequence[Row]) -> Titled | None:
    rows = [row for row in scored if row.one_trigger]
    if not rows:
        return None
    kept, notes = settings.at_the_papers(rows)
    labels = variants(kept)
    found = cases.lines(kept, labels)
    number = NUMBERS.get(beside.original(rows[0].dataset), "Tables 1 and 2")
    table = _noted(cases.side_by_side(found, labels), notes)
    return Titled("1_2_attack_cases", f"{number} · Attack cases", table, cases.measures(found, labels))


def _several_triggers(scored: Sequence[Row]) -> Titled | None:
    rows = [row for row in scored if not row.one_trigger]
    if not rows:
        return None
    kept, notes = settings.at_the_papers(rows)
    labels = variants(kept)
    found = cases.lines(kept, labels)
    table = _noted(triggers(found, labels), notes)
    return Titled("3_several_triggers", "Table 3 · Several triggers", table, cases.measures(found, labels))


def _poison_ratios(scored: Sequence[Row]) -> Titled | None:
    def write(line: Line) -> Value:
        ratio = line.first.poison_ratio
        return Value(names.ratio_name(ratio), sort=ratio)

    return _along(scored, "poison_ratio", ("4_poison_ratio", "Table 4 · Poison ratio"), write)


def _clean_sizes(scored: Sequence[Row]) -> Titled | None:
    def write(line: Line) -> Value:
        return Value(names.plain(line.size), sort=line.size)

    return _along(scored, "clean_size", ("5_clean_images", "Table 5 · Clean images"), write)


def _along(scored: Sequence[Row], axis: str, title: tuple[str, str], write: Callable[[Line], Value]) -> Titled | None:
    chosen, notes = settings.along(scored, axis)
    if not chosen:
        return None
    labels = variants(chosen)
    found = cases.lines(chosen, labels)
    head = "Poison ratio" if axis == "poison_ratio" else "Clean images"
    table = _noted(cases.stacked(found, labels, head, write), notes)
    return Titled(*title, table, cases.measures(found, labels))


def _seconds_to_effect(tried: Sequence[Row]) -> Titled | None:
    rows, notes = effect.chosen(tried)
    return effect.titled(rows, notes) if rows else None


def _radii(scored: Sequence[Row]) -> Titled | None:
    """Defenses with a radius, a row each value of it: means over the other axes."""
    alike = by((row for row in scored if row.radius is not None), lambda row: row.defense).values()
    rows = [row for members in alike if len({row.radius for row in members}) > 1 for row in members]
    if not rows:
        return None
    named = variants(rows)
    labels = {row.id: f"{named[row.id]}, Cδ = {names.plain(row.radius)}" for row in rows}
    ascending = sorted(rows, key=lambda row: row.radius or 0.0)
    return Titled(
        "radius", "Radius Cδ", summary(ascending, labels, list(dict.fromkeys(labels[row.id] for row in ascending)))
    )


def _ablation(scored: Sequence[Row]) -> Titled | None:
    if not scored:
        return None
    return Titled("ablation", "Ablation", summary(scored, variants(scored)))


def _clean_models(rows: Sequence[Row]) -> Titled | None:
    """What a defense costs a model that nobody poisoned."""
    if not rows:
        return None
    labels = variants(rows)
    body = []
    for label in ordered(rows, labels):
        for members in by([row for row in rows if labels[row.id] == label], lambda row: row.victim_key).values():
            before = [replace(row, figures=row.before, intervals={}) for row in members]
            figures = [measured(each, "acc", names.percent) for each in (before, members)]
            seconds = measured(members, "seconds", names.seconds_name)
            body.append((Value(label), Value(members[0].model), *figures, seconds))
    heads = (
        Head("Defense", numeric=False),
        Head("Model", numeric=False),
        Head("ACC before"),
        Head("ACC"),
        Head("Seconds"),
    )
    return Titled("clean_models", "Models that were never poisoned", Table(heads, tuple(body), tuple(given.note(rows))))


def _noted(table: Table, notes: Sequence[str]) -> Table:
    return replace(table, notes=(*notes, *table.notes))
