"""The timing suite's JSON in the report and in the documents; Table 6 as multiples of I-BAU's seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest

from adapters.errors import UserError
from bench import published
from bench.report import build, effect, timings
from bench.report.__main__ import main
from bench.report.embed import embed
from bench.report.groups import groups
from bench.report.rows import from_record
from bench.report.tables import Table

FACTS = {"device": "A (2 CPUs)", "threads": 1, "torch": "2.6", "commit": "c0ffee1234", "load": 0.5}


def benchmark(median: float, group: str = "digits: defenses to effect", /, **info: Any) -> dict[str, Any]:
    stats = {"median": median, "q1": 0.9 * median, "q3": 1.1 * median, "rounds": 3}
    return {"group": group, "name": "test", "stats": stats, "extra_info": {**FACTS, **info}}


def defense(median: float, name: str = "ibau", effect: bool = True, /, **changes: Any) -> dict[str, Any]:
    tree = fake.record(fake.cell(name, **changes))
    del tree["rounds"]
    passes = {"forward": 150, "backward": 300}
    return benchmark(
        median, kind="defense", record=tree, effect=effect, acc=0.95, asr=0.01 if effect else 0.9, passes=passes
    )


PART = benchmark(
    0.5, "digits: engine, 100 images, float32", kind="part", part="ascent step", precision="float32",
    passes={"forward": 100, "backward": 100}, floor_seconds=0.25, peak_memory_bytes=3 << 20,
)  # fmt: skip
HARNESS = benchmark(2.0, "digits: harness", kind="harness", what="victim training", images=1000, floor_seconds=0.5)

SCALE = benchmark(5.0, "scale", kind="scale", what="resume", cells=100_000)


def write(folder: Path, *benchmarks: dict[str, Any], name: str = "one.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"benchmarks": benchmarks, "machine_info": {}}))
    return path


def table(*records: dict[str, Any]) -> Table:
    (group,) = groups([from_record(record) for record in records])
    return effect.titled(group.rows, ()).table


def timed(name: str, seconds: float | None, /, device: str = "A", **changes: Any) -> dict[str, Any]:
    record = fake.record(fake.cell(name, **changes)) | {"seconds_to_effect": seconds}
    return record | {"provenance": record["provenance"] | {"device": device, "cells_beside": 0}}


def test_multiples_are_of_the_cells_on_which_both_had_effect() -> None:
    records = [timed("ibau", seconds, seed=seed) for seed, seconds in enumerate((2.0, 4.0, None))]
    records += [timed("nad", seconds, seed=seed) for seed, seconds in enumerate((20.0, None, 999.0))]
    rows = {row[0].text: row for row in table(*records).rows}
    assert (rows["I-BAU"][2].text, rows["NAD"][2].text, rows["NAD"][2].note) == ("1.0", "10.0", "1 cell")


def test_times_of_two_devices_enter_no_ratio() -> None:
    found = table(timed("ibau", 2.0), timed("nad", 90.0, device="B"))
    assert [row[2].text for row in found.rows] == ["–", "1.0"]
    assert any("Here: not known" in note for note in found.notes)


@pytest.mark.parametrize(("seconds", "word"), [(26.5, "holds"), (26.0, "holds in part"), (2.0, "does not hold here")])
def test_the_verdict_is_on_the_quickest_of_the_papers_baselines(seconds: float, word: str) -> None:
    found = table(timed("ibau", 2.0), timed("nad", seconds), timed("tabor", 900.0), timed("fine_tuning", 0.1))
    (verdict,) = [note for note in found.notes if note.startswith("The paper: more than 13×")]
    assert (
        f"{seconds / 2:.1f}× (NAD, the quickest of 2 of the 5 baselines in the paper's Table 6, 1 shared cell)"
        in verdict
    )
    assert verdict.endswith(f"; not among them: Fine-tuning 0.1×. The claim {word}.")
    assert "6.6× on CIFAR-10 (Fine-Pruning) and 10.1× on GTSRB (NAD)" in verdict


def test_the_papers_own_table_does_not_bear_out_its_thirteen_times() -> None:
    for dataset in ("cifar10", "gtsrb"):
        found = published.most_efficient_baseline(dataset)
        assert found is not None
        assert found[1] < published.SPEEDUP
    assert published.most_efficient_baseline("digits") is None


def test_the_papers_multiples_stand_beside_ours() -> None:
    changes = {"dataset": "cifar10", "poison_ratio": 0.2, "clean_size": 5000}
    rows = {row[0].text: row for row in table(timed("ibau", 2.0, **changes), timed("nad", 30.0, **changes)).rows}
    assert rows["NAD"][2].published == f"{79.90 / 6.82:.1f}"
    assert rows["I-BAU"][2].published == "1.0"


def test_cells_with_company_are_told_of() -> None:
    crowded = timed("ibau", 2.0)
    crowded["provenance"]["cells_beside"] = 1
    notes = " ".join(table(crowded, timed("nad", 3.0)).notes)
    assert "1 of 2 cells had others running beside them; `resources: {alone: true}` in a sweep file" in notes


def test_a_timed_defense_is_a_record_with_its_timed_seconds(tmp_path: Path) -> None:
    path = write(tmp_path, defense(1.5), defense(30.0, "nad"), defense(9.0, "fine_tuning", False), PART)
    rows = {row.defense: row for row in timings.reading(path).rows}
    assert rows["ibau"].figures["seconds_to_effect"] == 1.5
    assert "seconds_to_effect" not in rows["fine_tuning"].figures


def test_no_row_mixes_the_scored_run_with_the_timed_one(tmp_path: Path) -> None:
    """The timed one ends at its effect: of it are the seconds to effect and nothing else."""
    told = defense(1.5)
    told["extra_info"] |= {"acc": 0.95, "asr": 0.19}
    scored = from_record(told["extra_info"]["record"])
    (row,) = timings.reading(write(tmp_path, told)).rows
    assert row.figures == {**scored.figures, "seconds_to_effect": 1.5}
    assert row.intervals == scored.intervals


def test_the_report_draws_table_6_from_a_timing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, defense(1.5), defense(30.0, "nad"))
    assert main([str(path), "--format", "md"]) == 0
    text = (tmp_path / "one" / "report.md").read_text(encoding="utf-8")
    assert "Table 6 · Seconds to effect" in text
    assert "20.0" in text
    assert capsys.readouterr().out.strip().endswith("report.md")


def test_documents_get_their_tables_from_it(tmp_path: Path) -> None:
    write(tmp_path / "t", defense(1.5), defense(30.0, "nad"))
    write(tmp_path / "t", PART, HARNESS, SCALE, name="two.json")

    def block(what: str) -> str:
        return embed(f"<!-- timing: t {what} -->\nold\n<!-- /timing -->\n", tmp_path)

    assert "| NAD | 30.0 | 20.0 (1 cell) | 1 of 1 |" in block("defenses")
    assert "| ascent step | 500 ms (450 ms–550 ms) | 100 | 100 | 250 ms | 2.00 | 3.0 MiB |" in block("engine")
    assert "| victim training | 2.00 s (1.80 s–2.20 s) | 1,000 | 500 | 25 % |" in block("harness")
    assert "| resume | 100,000 | 5.00 s (4.50 s–5.50 s) | 0.05 ms |" in block("scale")
    assert "old" not in block("engine")
    assert "A (2 CPUs), 1 thread(s)" in block("engine")
    assert embed(block("engine"), tmp_path) == block("engine")


def test_documents_get_table_6_from_records_too(tmp_path: Path) -> None:
    fake.write(tmp_path / "r", [timed("ibau", 2.0), timed("nad", 30.0)])
    found = embed("<!-- timing: r defenses -->\n<!-- /timing -->\n", tmp_path)
    assert "**digits**" in found
    assert "| 15.0 (1 cell) |" in found


@pytest.mark.parametrize(
    ("ceilings", "told"),
    [
        (
            {"copied": 2.9134e12, "multiplied": {"float32": 50.7e12, "bfloat16": 747.4e12}},
            " The device itself, in the same run: 2,913 GB/s, read and written, in a copy; 747 Tflop/s in bfloat16 and"
            " 51 Tflop/s in float32, in products of square matrices.",
        ),
        (
            {"copied": 4.6e9, "multiplied": {"float32": 0.106e12}},
            " The device itself, in the same run: 4.6 GB/s, read and written, in a copy; 0.11 Tflop/s in float32, in"
            " products of square matrices.",
        ),
        (
            {"copied": 99.7e9, "multiplied": {"float32": 99.4e12}},
            " The device itself, in the same run: 100 GB/s, read and written, in a copy; 99 Tflop/s in float32, in"
            " products of square matrices.",
        ),
        ({"copied": None, "multiplied": {"float32": 1e12}}, ""),
        ({"copied": 1e9, "multiplied": {"float32": "fast"}}, ""),
        ("none", ""),
        (None, ""),
    ],
)
def test_what_the_device_reached_in_a_copy_and_in_products_is_told(tmp_path: Path, ceilings: Any, told: str) -> None:
    info = {} if ceilings is None else {"ceilings": ceilings}
    write(tmp_path, HARNESS, benchmark(1.0, "digits: harness", kind="harness", what="scoring", images=10, **info))
    assert timings.table(tmp_path, "harness").rstrip().endswith(f"commit c0ffee1.{told}")


@pytest.mark.parametrize("folder", ["nowhere", "empty", "other"])
def test_a_table_without_timings_says_so(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other", HARNESS)
    found = embed(f"<!-- timing: {folder} engine -->\nold\n<!-- /timing -->\n", tmp_path)
    assert found == f"<!-- timing: {folder} engine -->\n{timings.NONE}\n<!-- /timing -->\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{cut", "cannot read"),
        (b"[]", "no benchmarks"),
        (b'{"benchmarks": [1, {}, {"stats": {"median": "x"}, "extra_info": {}}]}', "no timing"),
    ],
)
def test_what_is_no_timing_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        build(path)


def test_timings_without_a_defense_make_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no timed defense"):
        build(write(tmp_path, PART))
    with pytest.raises(UserError, match="found 'all'; expected one of: defenses, engine, harness, scale"):
        timings.table(tmp_path, "all")


def test_timings_of_two_machines_are_in_no_table(tmp_path: Path) -> None:
    other = json.loads(json.dumps(PART))
    other["extra_info"]["device"] = "B"
    write(tmp_path, PART, other)
    with pytest.raises(UserError, match="has device 'B'; expected 'A"):
        timings.table(tmp_path, "engine")


def test_a_multiple_is_of_the_sums_of_seconds() -> None:
    records = [timed("ibau", seconds, seed=seed) for seed, seconds in enumerate((2.0, 6.0))]
    records += [timed("nad", seconds, seed=seed) for seed, seconds in enumerate((40.0, 30.0))]
    rows = {row[0].text: row for row in table(*records).rows}
    assert (rows["NAD"][2].text, rows["NAD"][2].note) == ("8.8", "2 cells")  # 70 / 8, not (20 + 5) / 2


def test_times_of_other_numbers_of_threads_enter_no_ratio() -> None:
    more = timed("nad", 90.0)
    more["provenance"] = more["provenance"] | {"threads": 4}
    assert [row[2].text for row in table(timed("ibau", 2.0), more).rows] == ["–", "1.0"]


def test_the_yardstick_is_the_quickest_of_those_with_most_effects() -> None:
    def ours(recipe: str, *seconds: float | None) -> list[dict[str, Any]]:
        cells = enumerate(seconds)
        return [timed("ibau", one, defense={"name": "ibau", "recipe": recipe}, seed=seed) for seed, one in cells]

    nad = [timed("nad", 40.0, seed=seed) for seed in (0, 1)]
    rows = {row[0].text: row[2].text for row in table(*ours("fast", 2.0, 2.0), *ours("paper", 8.0, 8.0), *nad).rows}
    assert rows == {"NAD": "20.0", "I-BAU (recipe fast)": "1.0", "I-BAU (recipe paper)": "4.0"}
    rows = {row[0].text: row[2].text for row in table(*ours("fast", 2.0, None), *ours("paper", 8.0, 8.0), *nad).rows}
    assert rows == {"NAD": "5.0", "I-BAU (recipe fast)": "0.2", "I-BAU (recipe paper)": "1.0"}


def test_runs_on_one_victim_are_cells_of_their_own() -> None:
    records = [timed(name, seconds, run=run) for name, each in (("ibau", (2.0, 6.0)), ("nad", (40.0, 30.0)))
               for run, seconds in enumerate(each, 1)]  # fmt: skip
    rows = {row[0].text: row for row in table(*records).rows}
    assert (rows["NAD"][2].text, rows["NAD"][2].note) == ("8.8", "2 cells")
