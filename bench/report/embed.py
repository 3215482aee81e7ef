"""``python -m bench.report.embed README.md docs/*.md``: figures in prose, written by records and never by hand.

A document holds blocks of the form

    <!-- records: results/authors_checkpoints rows: victim.checkpoint,defense -->
    <!-- /records -->

and this command puts between the two lines the table of those records: a line for each value of the keys in
``rows``, with the range over its records. Where a line would hold several data sets, contents of one, splits, n or
radii, these get a column and a line each. Blocks of the form

    <!-- report: results/baselines 1_2_attack_cases -->
    <!-- /report -->

get the report's table of that name (``table`` in its ``tables.csv``): in the paper's layout, with intervals, marks and
the published figures. Blocks of the form

    <!-- plot: results/engine 2-gtsrb-asr-spread -->
    <!-- /plot -->

get the report's figure of that name, which is written to ``figures/`` beside the document. Blocks of the form

    <!-- timing: results/timing engine -->
    <!-- /timing -->

get a table of the timing suite's JSON in that folder, ``defenses``, ``engine``, ``harness`` or ``scale``; and those of
the form

    <!-- faults: results/faults -->
    <!-- /faults -->

what became of injected faults (``bench.report.faults``). Blocks of the form

    <!-- driver: results/scale/driver.json -->
    <!-- /driver -->

get the table of simulated sweeps in that file (``bench.report.driver``). Blocks of the form

    <!-- runs: results/table4 results/table5 -->
    <!-- /runs -->

get a line for each of those folders: how long its sweep took, and on what (``bench.report.runs``). Blocks of the form

    <!-- looseness: results/theory -->
    <!-- /looseness -->

say how many times the theorems' bounds are the measured gaps (``bench.report.looseness``). Blocks of the form

    <!-- settings: nad -->
    <!-- /settings -->

get the settings of that defense (``bench.report.defense_settings``). ``--check`` writes nothing
and exits with 1 where a document is stale; whether a figure's bytes are, it does not say: they vary with fonts.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from adapters.errors import UserError
from bench.records import Record, RecordStore
from bench.report import defense_settings, driver, faults, looseness, markdown, runs, timings
from bench.report.groups import by
from bench.report.page import Drawn, compose
from bench.report.rows import read

BLOCK = re.compile(r"(<!-- records: (?P<folder>\S+) rows: (?P<rows>\S+) -->\n).*?(<!-- /records -->)", re.DOTALL)
FAULTS = re.compile(r"(<!-- faults: (?P<folder>\S+) -->\n).*?(<!-- /faults -->)", re.DOTALL)
DRIVER = re.compile(r"(<!-- driver: (?P<file>\S+) -->\n).*?(<!-- /driver -->)", re.DOTALL)
RUNS = re.compile(r"(<!-- runs: (?P<folders>[^>]+?) -->\n).*?(<!-- /runs -->)", re.DOTALL)
LOOSENESS = re.compile(r"(<!-- looseness: (?P<folder>\S+) -->\n).*?(<!-- /looseness -->)", re.DOTALL)
SETTINGS = re.compile(r"(<!-- settings: (?P<defense>\S+) -->\n).*?(<!-- /settings -->)", re.DOTALL)
PLOT = re.compile(r"(<!-- plot: (?P<folder>\S+) (?P<stem>\S+) -->\n).*?(<!-- /plot -->)", re.DOTALL)
TIMING = re.compile(r"(<!-- timing: (?P<folder>\S+) (?P<what>\S+) -->\n).*?(<!-- /timing -->)", re.DOTALL)
REPORT = re.compile(r"(<!-- report: (?P<folder>\S+) (?P<stem>\S+) -->\n).*?(<!-- /report -->)", re.DOTALL)
SCORED = ("ok", "no_trigger_detected")
APART = ("dataset", "content", "split", "schema", "clean_size", "radius")
"""What no line mixes, as in the report (``groups``)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 current (or made so), 1 stale under ``--check``, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m bench.report.embed", description=__doc__.split("\n\n")[0])
    parser.add_argument("documents", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a document is stale")
    given = parser.parse_args(arguments)
    try:
        stale = [path for path in given.documents if _update(path, write=not given.check)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in stale:
        print(f"{path}: {'stale' if given.check else 'written'}")
    return 1 if stale and given.check else 0


def embed(text: str, root: Path) -> str:
    """``text`` with every block filled from the records under ``root``."""

    def records_of(match: re.Match[str]) -> list[Record]:
        found = RecordStore(root / match["folder"]).read()
        if not found:
            raise UserError(f"records: found none in {match['folder']}; expected a folder with records.jsonl")
        return found

    def fill(match: re.Match[str]) -> str:
        return match[1] + table(records_of(match), match["rows"].split(",")) + match[4]

    def reported(match: re.Match[str]) -> str:
        tables = _report_tables(root / match["folder"], match["stem"])
        return f"{match[1]}{tables}\n\n{_source(records_of(match))}\n{match[4]}"

    def plot(match: re.Match[str]) -> str:
        return f"{match[1]}![{_caption(match)}]({_figure(match)})\n{match[4]}"

    def timing(match: re.Match[str]) -> str:
        return match[1] + timings.table(root / match["folder"], match["what"]) + match[4]

    def tell(match: re.Match[str]) -> str:
        return match[1] + faults.table(root / match["folder"]) + match[3]

    def simulated(match: re.Match[str]) -> str:
        return match[1] + driver.table(root / match["file"]) + match[3]

    def loose(match: re.Match[str]) -> str:
        return match[1] + looseness.table(root / match["folder"]) + match[3]

    def ran(match: re.Match[str]) -> str:
        return match[1] + runs.table([root / name for name in match["folders"].split()]) + match[3]

    def takes(match: re.Match[str]) -> str:
        return match[1] + defense_settings.table(match["defense"]) + match[3]

    blocks = (
        (BLOCK, fill), (REPORT, reported), (FAULTS, tell), (DRIVER, simulated), (PLOT, plot), (TIMING, timing),
        (LOOSENESS, loose), (RUNS, ran), (SETTINGS, takes),
    )  # fmt: skip
    for pattern, write in blocks:
        text = pattern.sub(write, text)
    return text


def _report_tables(folder: Path, stem: str) -> str:
    """The table ``stem`` of a folder's report as Markdown, one for each data set that has it."""
    sections = compose(folder, read(folder), draw=False).groups
    found = [(one.title, table) for one in sections for name, table in one.tables if name == stem]
    if not found:
        known = dict.fromkeys(name for one in sections for name, _ in one.tables)
        raise UserError(f"report: found {stem!r}; expected one of: {', '.join(known)}")
    several = len(sections) > 1
    return "\n\n".join((f"**{title}**\n\n" if several else "") + markdown.table(one) for title, one in found)


def _figures(folder: Path) -> dict[str, Drawn]:
    """The figures of a folder's report, by name."""
    page = compose(folder, read(folder), draw=True)
    return {one.stem: one for group in page.groups for block in group.blocks for one in block.figures}


def _figure(match: re.Match[str]) -> PurePosixPath:
    """Where a plot's figure lies, seen from its document."""
    return PurePosixPath("figures", f"{PurePosixPath(match['folder']).name}-{match['stem']}.svg")


def _caption(match: re.Match[str]) -> str:
    return match["stem"].lstrip("0123456789-").replace("-", " ")


def _draw(text: str, root: Path, beside: Path) -> None:
    """Write the figures that ``text`` asks for."""
    matches = list(PLOT.finditer(text))
    drawn = {name: _figures(root / name) for name in {match["folder"] for match in matches}}
    for match in matches:
        found = drawn[match["folder"]]
        if match["stem"] not in found:
            raise UserError(f"plot: found {match['stem']!r}; expected one of: {', '.join(found)}")
        path = beside / _figure(match)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(found[match["stem"]].svg)


def table(records: Sequence[Record], keys: Sequence[str]) -> str:
    """A Markdown table, a line for each value of ``keys``, and a line saying where its figures come from.

    ``APART`` joins the keys where a line would mix its values.
    """
    trees = _trees(records)
    keys = [*keys, *_mixed(trees, keys)]
    rows = by(records, lambda record: tuple(_value(trees[record.id], key) for key in keys))
    head = [
        *(key.split(".")[-1].replace("_", " ") for key in keys),
        "runs",
        "victim ACC / ASR",
        "ACC",
        "ASR",
        "seconds",
    ]
    lines = [head, ["---"] * len(head)]
    for names, group in sorted(rows.items()):
        scored = [record for record in group if record.status in SCORED]
        runs = f"{len(scored)}" if len(scored) == len(group) else f"{len(scored)} of {len(group)}"
        victims = [record.victim for record in group if record.victim]
        before = f"{_range((v.acc for v in victims), _percent)} / {_range((v.asr for v in victims), _percent)}"
        figures = [_range((getattr(r, name) for r in scored), _percent) for name in ("acc", "asr")]
        lines.append([*names, runs, before, *figures, _range((r.seconds for r in scored), "{:.1f}".format)])
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    told = "ACC and ASR in %, median (lowest–highest); seconds are the defense's own."
    return f"{body}\n\n{told} {_source(records)}\n"


def _trees(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Record id to its cell, with what else tells figures apart. A content that is not told is the only one known."""
    known = {name: {one.data for one in each if one.data} for name, each in by(records, _dataset).items()}
    trees = {}
    for record in records:
        only = next(iter(known[_dataset(record)])) if len(known[_dataset(record)]) == 1 else None
        content = (record.data or only or "not told")[:8]
        told = {"content": content, "split": record.split, "schema": record.schema_version}
        trees[record.id] = record.cell.model_dump(mode="json") | told
    return trees


def _dataset(record: Record) -> str:
    return record.cell.dataset


def _mixed(trees: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """Those of ``APART`` of which a line for each value of ``keys`` would hold several values."""
    lines = by(trees.values(), lambda tree: tuple(_value(tree, key) for key in keys)).values()
    left = [key for key in APART if key not in keys]
    return [key for key in left if any(len({tree[key] for tree in each} - {None}) > 1 for each in lines)]


def _range(values: Iterable[float | None], write: Callable[[float], str]) -> str:
    """Median and, of several records, the range."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "–"
    middle = write(statistics.median(known))
    return middle if len(known) == 1 else f"{middle} ({write(known[0])}–{write(known[-1])})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _source(records: Sequence[Record]) -> str:
    sources = [record.provenance for record in records if record.provenance]
    versions = sorted({f"torch {source.torch}" for source in sources})
    commits = sorted({source.commit[:7] for source in sources if source.commit})
    hardware = "; ".join(runs.hardware(records))
    return f"{len(records)} records on {hardware}; {', '.join(versions)}; commit {', '.join(commits)}."


def _value(tree: Mapping[str, Any], key: str) -> str:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if key == "defense" and isinstance(value, Mapping):
        return f"{value['name']} ({', '.join(_chosen(value))})" if value.get("recipe") else str(value["name"])
    if key.endswith("checkpoint") and value:
        return PurePosixPath(str(value)).stem
    if isinstance(value, list):  # of several triggers
        return f"{len(value)} triggers"
    if isinstance(value, bool):
        return str(value).lower()
    return "–" if value is None else str(value)


def _chosen(defense: Mapping[str, Any]) -> list[str]:
    """The recipe, and the settings that are not the recipe's own."""
    given = {
        key: value for key, value in defense.items() if value is not None and key not in ("name", "recipe", "ball")
    }
    return [str(defense["recipe"]), *(f"{key}: {str(value).lower()}" for key, value in given.items())]


def _update(path: Path, *, write: bool) -> bool:
    """Whether ``path`` was stale."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"FILE: cannot read {path} ({error.strerror}); expected a Markdown document") from error
    root = next((one for one in path.resolve().parents if (one / "pyproject.toml").exists()), path.resolve().parent)
    fresh = embed(text, root)
    if write:
        _draw(text, root, path.parent)
    if fresh != text and write:
        path.write_text(fresh, encoding="utf-8")
    return fresh != text


if __name__ == "__main__":
    sys.exit(main())
