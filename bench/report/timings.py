"""What the timing suite wrote (pytest-benchmark's JSON): its defenses as records, its parts as tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import UserError
from bench.records import FILE
from bench.report import effect, markdown, names, paper
from bench.report.groups import by, groups
from bench.report.rows import Reading, from_record
from bench.report.rows import read as read_records
from bench.report.tables import Head, Table, Value
from bench.report.values import number, tidy
from bench.timing.hardware import check_same

STEM = "6_seconds_to_effect"
NONE = "*No timing is committed for this table yet.*"

Rows = tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Timing:
    """One benchmark: the ``median`` of its repetitions and the ends of the middle half, in seconds."""

    group: str
    median: float
    low: float
    high: float
    info: Mapping[str, Any]
    """The suite's ``extra_info``."""

    def value(self) -> Value:
        span = f"{milliseconds(self.low)}–{milliseconds(self.high)}" if self.low < self.high else ""
        return Value(milliseconds(self.median), span, sort=self.median)


def read(path: Path) -> list[Timing]:
    """The timings of the file at ``path``, or of every JSON file in the folder: ``UserError`` where there are none,
    and where they come from different hardware."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found = [timing for file in files for timing in _read(file)]
    if not found:
        raise UserError(f"RESULTS: found no timing in {str(path)!r}; expected JSON that the timing suite wrote")
    for timing in found[1:]:
        check_same(found[0].info, timing.info, f"a timing in {path.name}", "RESULTS")
    return found


def reading(path: Path) -> Reading:
    """The timed defenses of ``path`` as the report reads records."""
    trees = [record(timing) for timing in read(path) if timing.info.get("kind") == "defense"]
    if not trees:
        raise UserError(f"RESULTS: found no timed defense in {str(path)!r}; expected JSON that the timing suite wrote")
    return Reading([from_record(tree) for tree in trees], 0)


def record(timing: Timing) -> dict[str, Any]:
    """The record of a timed defense: that of its scored run, with the seconds to effect of the timed ones.

    Of these the median; null where they ended without effect. The timed runs end at the effect, with another model than
    the scored one may: their ACC, ASR and passes stay in the file, lest a row mix two runs.
    """
    info = timing.info
    known = info.get("record")
    tree = known if isinstance(known, dict) else {}
    return {**tree, "seconds_to_effect": timing.median if info.get("effect") is True else None}


def table(path: Path, what: str) -> str:
    """Markdown: ``defenses`` (Table 6), ``engine``, ``harness`` or ``scale``, and a line on their origin.

    Table 6 is drawn from a folder's records too. A folder without any such JSON is told of as what it is.
    """
    if what not in _TABLES:
        raise UserError(f"timing: found {what!r}; expected one of: {', '.join(_TABLES)}")
    kind, draw = _TABLES[what]
    if what == "defenses" and (path / FILE).is_file():
        return _of_records(path)
    if not path.is_file() and not list(path.glob("*.json")):
        return f"{NONE}\n"
    timings = [timing for timing in read(path) if timing.info.get("kind") == kind]
    if not timings:
        return f"{NONE}\n"
    named = [(f"**{markdown.escape(group)}**\n\n" if group else "", members) for group, members in _groups(timings)]
    parts = [title + draw(members) for title, members in named]
    return "\n\n".join([*parts, _source(timings)]) + "\n"


def _of_records(folder: Path) -> str:
    parts = []
    for group in groups(read_records(folder).rows):
        titled = paper.tables(group)
        parts += [
            f"**{markdown.escape(group.title)}**\n\n{markdown.table(one.table)}" for one in titled if one.stem == STEM
        ]
    return "\n\n".join(parts or [NONE]) + "\n"


def milliseconds(seconds: float) -> str:
    """12.3 ms, or 4.56 s."""
    if seconds >= 1:
        return f"{names.seconds_name(seconds)} s"
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else "1.00 s"


def _groups(timings: Sequence[Timing]) -> list[tuple[str, list[Timing]]]:
    return sorted(by(timings, lambda timing: timing.group).items())


def _defenses(timings: Sequence[Timing]) -> str:
    return markdown.table(effect.titled([from_record(record(timing)) for timing in timings], ()).table)


def _engine(timings: Sequence[Timing]) -> str:
    """Each part beside its floor."""
    heads = ("Seconds", "Images forward", "Images backward", "Floor", "× floor", "Peak memory")
    body = []
    for timing in timings:
        info, floor = timing.info, number(timing.info.get("floor_seconds"))
        passes = info.get("passes") if isinstance(info.get("passes"), dict) else {}
        images = [Value(names.count_name(number((passes or {}).get(way)))) for way in ("forward", "backward")]
        over = Value(f"{timing.median / floor:.2f}" if floor else "–")
        memory = Value(names.bytes_name(number(info.get("peak_memory_bytes"))))
        shown = Value(milliseconds(floor)) if floor else Value("–")
        body.append((Value(str(info.get("part", ""))), timing.value(), *images, shown, over, memory))
    return _written("Part", heads, tuple(body))


def _harness(timings: Sequence[Timing]) -> str:
    """Speeds, and where the work is known in multiplications the share of what the device reaches in a product."""
    heads = ("Seconds", "Images", "Images a second", "Share of the device")
    body = []
    for timing in timings:
        info, floor = timing.info, number(timing.info.get("floor_seconds"))
        images = number(info.get("images"))
        speed = Value(names.count_name(images / timing.median)) if images else Value("–")
        share = Value(f"{100 * floor / timing.median:.0f} %" if floor else "–")
        body.append((Value(str(info.get("what", ""))), timing.value(), Value(names.plain(images)), speed, share))
    return _written("What", heads, tuple(body))


def _scale(timings: Sequence[Timing]) -> str:
    """Seconds of the driver, in all and for one cell."""
    body = []
    for timing in timings:
        count = number(timing.info.get("cells"))
        each = Value(milliseconds(timing.median / count) if count else "–")
        body.append((Value(str(timing.info.get("what", ""))), Value(names.plain(count)), timing.value(), each))
    return _written("What", ("Cells", "Seconds", "For one cell"), tuple(body))


def _written(first: str, heads: Sequence[str], body: Rows) -> str:
    return markdown.table(Table((Head(first, numeric=False), *map(Head, heads)), body))


_TABLES: dict[str, tuple[str, Callable[[Sequence[Timing]], str]]] = {
    "defenses": ("defense", _defenses),
    "engine": ("part", _engine),
    "harness": ("harness", _harness),
    "scale": ("scale", _scale),
}


_EXPECTED = "the timing suite's JSON, or a sweep's folder"


def _read(path: Path) -> list[Timing]:
    try:
        tree = tidy(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"RESULTS: cannot read {str(path)!r} ({error}); expected {_EXPECTED}") from error
    listed = tree.get("benchmarks") if isinstance(tree, dict) else None
    if not isinstance(listed, list):
        raise UserError(f"RESULTS: found no benchmarks in {str(path)!r}; expected {_EXPECTED}")
    found = [_timing(one) for one in listed if isinstance(one, dict)]
    return [one for one in found if one is not None]


def _timing(tree: Mapping[str, Any]) -> Timing | None:
    stats, info = tree.get("stats"), tree.get("extra_info")
    if not isinstance(stats, dict) or not isinstance(info, dict):
        return None
    median, low, high = (number(stats.get(key)) for key in ("median", "q1", "q3"))
    if median is None or median <= 0:
        return None
    group = tree.get("group")
    first, last = (median if end is None else end for end in (low, high))
    return Timing(group if isinstance(group, str) else "", median, first, last, info)


def _source(timings: Sequence[Timing]) -> str:
    """Device, versions and load of the timings."""
    first = timings[0].info
    versions = sorted({f"torch {timing.info.get('torch')}" for timing in timings})
    commits = sorted({str(timing.info.get("commit"))[:7] for timing in timings})
    loads = [load for timing in timings if (load := number(timing.info.get("load"))) is not None]
    busy = f"; load {min(loads):.1f}–{max(loads):.1f} of 1 for each CPU" if loads else ""
    where = f"{first.get('device')}, {first.get('threads')} thread(s)"
    text = f"{len(timings)} timings on {where}{busy}; {', '.join(versions)}; commit {', '.join(commits)}."
    return markdown.escape(f"Medians, the middle half in parentheses. {text}{_ceilings(timings)}")


def _ceilings(timings: Sequence[Timing]) -> str:
    """What the device reached in a large copy and in large products, in the run of ``timings``."""
    found = next((one for timing in timings if isinstance(one := timing.info.get("ceilings"), dict)), {})
    copied, products = number(found.get("copied")), found.get("multiplied")
    rates = {name: number(rate) for name, rate in products.items()} if isinstance(products, dict) else {}
    told = [f"{_short(rate / 1e12)} Tflop/s in {name}" for name, rate in sorted(rates.items()) if rate]
    if not copied or not told:
        return ""
    return (
        f" The device itself, in the same run: {_short(copied / 1e9)} GB/s, read and written, in a copy;"
        f" {' and '.join(told)}, in products of square matrices."
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if round(value) >= 100 else f"{value:.2g}"
