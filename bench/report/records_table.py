"""The table of every record, the list of those not scored, and what the records say of where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from bench.report import names
from bench.report.groups import by
from bench.report.rows import Row
from bench.report.tables import MEASURES, Head, Table, Value, measures
from bench.report.values import canonical

EMBEDDED = frozenset({"digits"})
"""Data sets that need no data root."""

MOST_TOLD = 600
"""Characters of one finding of a defense that stand with its record; ``records.jsonl`` has it whole."""
MOST_IDS = 3
_OF_ATTACKS = ("attack", "target", "mix", "clean_label", "poison_ratio", "min_asr")
"""What a sweep file may not say of a clean model."""
SHORT = 10
"""Digits of a commit that are told."""

_Write = Callable[[Row], Value]


@dataclass(frozen=True)
class Details:
    """What opens beneath a record."""

    id: str
    reason: str
    facts: tuple[tuple[str, str], ...]
    command: str
    """Shell lines that make the record again."""
    settings: str
    """Of the defense, as JSON: those that have a value."""


@dataclass(frozen=True)
class Records:
    table: Table
    details: tuple[Details, ...]
    constants: tuple[tuple[str, Value], ...]
    """Columns that would hold one value all the way down."""


def _number(write: Callable[[float | None], str], value: float | None) -> Value:
    return Value(write(value), sort=value)


def _columns(rows: Sequence[Row], labels: Mapping[str, str]) -> list[tuple[Head, _Write]]:
    def figure(name: str, key: str, write: Callable[[float | None], str]) -> tuple[Head, _Write]:
        return Head(name), lambda row: _number(write, row.figures.get(key))

    return [
        (Head("Status", numeric=False), lambda row: Value(row.status)),
        (Head("Defense", numeric=False), lambda row: Value(labels[row.id])),
        (Head("Data set", numeric=False), lambda row: Value(row.dataset)),
        (Head("Model", numeric=False), lambda row: Value(row.model)),
        (Head("Checkpoint", numeric=False), lambda row: Value(row.checkpoint or "–")),
        (Head("Attack", numeric=False), lambda row: Value(names.attack_name(row.attack) or "–")),
        (Head("Target", numeric=False), lambda row: Value(names.target_name(row.target) or "–")),
        (Head("Poison ratio"), lambda row: _number(names.ratio_name, row.poison_ratio)),
        (Head("n"), lambda row: _number(names.plain, row.clean_size)),
        (Head("Cδ"), lambda row: _number(names.plain, row.radius)),
        (Head("Seed"), lambda row: _number(names.plain, row.seed)),
        figure("ACC", "acc", names.percent),
        figure("ASR", "asr", names.percent),
        figure("RA", "ra", names.percent),
        figure("DER", "der", names.percent),
        figure("Error gap", "error_gap", names.percent),
        figure("Seconds", "seconds", names.seconds_name),
        figure("To effect", "seconds_to_effect", names.seconds_name),
        figure("Forward", "forward", names.count_name),
        figure("Backward", "backward", names.count_name),
        figure("Peak memory", "peak_memory_bytes", names.bytes_name),
        *(figure(*each) for each in measures(rows)[len(MEASURES) :]),
    ]


_ALWAYS_SHOWN = frozenset({"Status", "Defense", "ACC", "ASR"})


def records(rows: Sequence[Row], labels: Mapping[str, str]) -> Records:
    """Every record; a column that never changes is told once instead."""
    heads, cells, constants = [], [], []
    for head, write in _columns(rows, labels):
        values = [write(row) for row in rows]
        if len({value.text for value in values}) > 1 or head.text in _ALWAYS_SHOWN:
            heads.append(head)
            cells.append(values)
        elif values[0].text != "–":
            constants.append((head.text, values[0]))
    table = Table(tuple(heads), tuple(zip(*cells, strict=True)))
    return Records(table, tuple(map(_details, rows)), tuple(constants))


def _details(row: Row) -> Details:
    facts = [
        (f"{names.metric_name(metric)}, 95 % interval", f"{names.percent_range(*ends)} %")
        for metric, ends in row.intervals.items()
    ]
    if "acc" in row.before and "asr" in row.before:
        before = f"ACC {names.percent(row.before['acc'])}, ASR {names.percent(row.before['asr'])}"
        facts.insert(0, ("Before the defense", before))
    facts += [("Left out, out of range", ", ".join(row.left_out))] if row.left_out else []
    facts += [("Its cell", "not the one that its id names")] if row.misnamed else []
    facts += [(key.replace("_", " "), _short(text)) for key, text in flat(row.details).items()]
    facts += [(key, text) for key, text in flat(row.provenance).items() if text]
    settings = {key: value for key, value in row.settings.items() if value is not None}
    return Details(row.id, row.reason, tuple(facts), command(row), canonical(settings))


def _short(text: str) -> str:
    """Norms of 43 classes fit, the numbers of 126 pruned channels do not."""
    return text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]}…"


def one_cell_sweep(row: Row) -> str:
    """A sweep file of this record's cell: ``python -m bench.sweep`` on it makes the record again.

    Repetition k is the last of ``seeds: k + 1``. Digests of files are left out (the sweep takes them from the files),
    and so is what the cell leaves unset. A clean model's attack is ``none``, and what is said of attacks is left out.
    """
    left_out = {"seed", *(_OF_ATTACKS if row.is_clean else ())}
    shared = {key: value for key, value in row.cell.items() if value is not None and key not in left_out}
    shared |= {"attack": "none"} if row.is_clean else {}
    tree = {"name": cell_name(row), "cell": _without_digests(shared), "seeds": row.seed + 1}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


def command(row: Row) -> str:
    """Shell lines that write the sweep file of this one cell and run it.

    Nothing in a stranger's record can end the file early: the line that ends it occurs nowhere in it.
    """
    text = one_cell_sweep(row)
    end = "END"
    while end in text.split("\n"):
        end += "_"
    file = f"{cell_name(row)}.yaml"
    root = "" if row.dataset in EMBEDDED else " --data-root DIR"
    return f"cat > {file} <<'{end}'\n{text}{end}\npython -m bench.sweep {file}{root}\n"


def cell_name(row: Row) -> str:
    """A sweep's name for the cell: letters and digits whatever the record's id holds."""
    return "cell-" + "".join(letter for letter in row.id if letter.isascii() and letter.isalnum())[:16]


def _without_digests(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_digests(value) for key, value in tree.items() if key != "digest"}
    return [_without_digests(value) for value in tree] if isinstance(tree, list) else tree


def unscored(rows: Sequence[Row], labels: Mapping[str, str]) -> Table | None:
    """Records that enter no mean, with their reasons."""
    left = [row for row in rows if not (row.scored or (row.measured and row.is_clean))]
    if not left:
        return None
    heads = ("Status", "Reason", "Defense", "Data set", "Model", "Attack", "Target", "Poison ratio", "n", "Cδ", "Seed")
    body = []
    for row in left:
        reason = row.reason or (f"out of range: {', '.join(row.left_out)}" if row.left_out else "no reason recorded")
        texts = [row.status, reason, labels[row.id], row.dataset, row.model]
        texts += [names.attack_name(row.attack), names.target_name(row.target), names.ratio_name(row.poison_ratio)]
        texts += [names.plain(row.clean_size), names.plain(row.radius), str(row.seed)]
        body.append(tuple(Value(text) for text in texts))
    return Table(tuple(Head(text, numeric=False) for text in heads), tuple(body))


def doubts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What speaks against believing some of the records: nothing of what this program wrote."""
    left_out = by([name for row in rows for name in row.left_out], str)
    told = ", ".join(f"{name} of {_records(len(each))}" for name, each in left_out.items())
    found = [("Values out of range, left out", told)] if told else []
    ids = [row.id for row in rows if row.misnamed]
    more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
    text = f"{_records(len(ids))}: {', '.join(ids[:MOST_IDS])}{more}"
    return [*found, ("Cell not the one that the id names", text)] if ids else found


def _records(count: int) -> str:
    return f"{count} record{'s' * (count > 1)}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A tree's leaves as text under dotted names."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat({str(inner): item for inner, item in value.items()}, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def provenance(rows: Sequence[Row], most: int = 4) -> list[tuple[str, str]]:
    """What the records say of commit, versions and hardware: each distinct value with how many records have it."""
    seen: dict[str, list[str]] = {}
    for row in rows:
        for key, text in flat(row.provenance).items():
            seen.setdefault(key, []).append(text)
    found = []
    for key, texts in seen.items():
        if any(part in key for part in ("start", "time", "date")):
            found.append((key, texts[0] if len(set(texts)) == 1 else f"{min(texts)} to {max(texts)}"))
            continue
        if key == "commit":
            texts = [text[:SHORT] for text in texts]
        counts = sorted(by(texts, str).items(), key=lambda item: (-len(item[1]), item[0]))
        told = [text if len(counts) == 1 else f"{text} ({len(each)} records)" for text, each in counts[:most]]
        found.append((key, ", ".join(told) + (f" and {len(counts) - most} more" if len(counts) > most else "")))
    return found
