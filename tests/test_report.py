"""The report is built from made-up records; what is checked is what a reader could be misled by."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest

from adapters.errors import UserError
from bench import spec
from bench.report import build, marks, names, tables
from bench.report.__main__ import main
from bench.report.groups import estimate, groups, variants
from bench.report.records_table import command, one_cell_sweep, records
from bench.report.rows import Row, from_record, one_each, read

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "{{ 7*7 }} $x_{$ | `a` \\ ]]> &amp; <!--",
    "\x00\x07\u202e\ud800 new\nline",
]


def rows_of(*records_: dict[str, Any]) -> list[Row]:
    return [from_record(each) for each in records_]


class _Page(html.parser.HTMLParser):
    """Tags and attributes of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.fixture(scope="module")
def sensitivity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fake.write(tmp_path_factory.mktemp("results") / "sensitivity", fake.sensitivity())
    build(folder)
    return folder


def test_every_record_is_on_the_page(sensitivity: Path) -> None:
    text = (sensitivity / "report.html").read_text()
    for row in read(sensitivity).rows:
        assert f"<b>{row.id}</b>" in text
    assert "43</b>" in text
    assert "the loss became NaN in round 2" in text
    assert "the loss became NaN in round 2" in (sensitivity / "report.md").read_text()


def test_the_page_asks_for_nothing_from_outside(sensitivity: Path) -> None:
    page = _Page((sensitivity / "report.html").read_text())
    assert {"link", "img", "iframe", "object"}.isdisjoint(page.tags)
    targets = [value or "" for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(target.startswith("#") for target in targets)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_figures_are_drawn_for_the_axes_that_vary(sensitivity: Path) -> None:
    stems = {path.stem.removeprefix("1-digits-") for path in (sensitivity / "plots").glob("*.svg")}
    curves = {f"{metric}-by-{axis}" for metric in ("asr", "acc") for axis in ("poison-ratio", "clean-size", "radius")}
    maps = {f"{metric}-map-{k}" for metric in ("asr", "acc") for k in (1, 2, 3)}
    # One seed a case: there is no spread to draw.
    others = {"acc-asr", "seconds-asr", "acc-asr-seconds", "asr-rounds", "acc-rounds", "error-gap-by-clean-size"}
    assert stems == curves | maps | others
    assert {path.stem for path in (sensitivity / "plots").glob("*.png")} == {f"1-digits-{stem}" for stem in stems}


def test_the_same_records_give_the_same_bytes(sensitivity: Path, tmp_path: Path) -> None:
    lines = (sensitivity / "records.jsonl").read_text().splitlines()
    again = tmp_path / "sensitivity"
    again.mkdir()
    (again / "records.jsonl").write_text("\n".join(reversed(lines)))
    build(again)
    for path in sorted(sensitivity.rglob("report.*")) + sorted((sensitivity / "plots").iterdir()):
        assert path.read_bytes() == (again / path.relative_to(sensitivity)).read_bytes(), path.name


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    found = []
    for place, text in enumerate(HOSTILE):
        tree = fake.cell(dataset=text, model=text, attack=text, target=text, radius=1.0 + place)
        tree["defense"] = {"name": text, text: text}
        found.append(fake.record(tree, id=f"{place}{text}", provenance={text: text, "device": text}))
        tree = fake.cell(dataset="digits", attack=text, radius=float(place), defense={"name": f"ibau{text}"})
        found.append(fake.record(tree, reason=text, rounds=[{"acc": text, "asr": 0.5}]))
        found.append(fake.unscored(fake.cell(model=text, seed=place), text, text))
        several = [{"attack": text, "target": text}, {"attack": {"image": text, "mode": text}, "target": 3}]
        figures = [{"asr": 0.3, "ra": 0.2, text: text}, {"asr": text}]
        rounds = [{"acc": 0.9, "asr": 0.2, "asr_by_trigger": {text: 0.5}}]
        tree = fake.cell(dataset="digits", attack=several, defense={"name": "ibau", "recipe": text})
        found.append(fake.record(tree, triggers=figures, rounds=rounds, details={text: "pictures/x.png"}))
    (tmp_path / "hostile").mkdir()
    parts = [{"name": text, "reductions": text, "cells": [text]} for text in HOSTILE[:-1]]
    (tmp_path / "hostile" / "sweep.json").write_text(json.dumps({"budget": HOSTILE[0], "parts": parts}))
    path = build(fake.write(tmp_path / "hostile", found))
    raw = path.read_text()
    page = _Page(raw)
    assert page.tags.count("script") == 1
    assert page.tags.count("style") == 1
    assert page.tags.count("img") == 0
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "49" not in re.findall(r"<h2>.*?</h2>", raw, flags=re.DOTALL)
    markdown = (tmp_path / "hostile" / "report.md").read_text()
    assert "<script" not in markdown
    assert "<img" not in markdown
    for plot in (tmp_path / "hostile" / "plots").iterdir():
        assert re.fullmatch(r"[a-z0-9-]+\.(svg|png)", plot.name)
        assert plot.suffix != ".svg" or b"<script" not in plot.read_bytes()


def test_values_of_the_wrong_type_are_no_figures(tmp_path: Path) -> None:
    deep = json.loads('{"a":' * 400 + "1" + "}" * 400)
    strange = fake.record(fake.cell(seed=3), provenance=deep) | {
        "acc": "0.9",
        "asr": [1],
        "rounds": {"a": 1},
        "victim": "x",
        "passes": 3,
    }
    lines = [json.dumps(strange), "not json", "[]", "[" * 100_000, '{"cell": 3}', json.dumps(fake.record(fake.cell()))]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + '\n{"cell": {"dataset"')
    reading = read(tmp_path)
    assert (len(reading.rows), reading.unreadable) == (2, 5)
    assert [row.scored for row in reading.rows] == [True, False]
    assert "Unreadable lines" in build(tmp_path).read_text()


def test_values_that_cannot_be_are_no_figures(tmp_path: Path) -> None:
    """ACC in percent, a negative time: told, left out, and in no mean."""
    percent = fake.record(fake.cell(seed=1), asr=0.5) | {"acc": 95, "acc_interval": [94, 96], "seconds": -3.0}
    percent |= {"passes": {"forward": -1, "backward": 5}, "der_interval": [-0.1, 0.2]}
    percent["victim"] |= {"asr": 98.1, "seconds": -1}
    percent["rounds"] = [{"acc": 0.9, "asr": 40.0}]
    pair = [{"attack": attack, "target": 8} for attack in ("badnets", "blend")]
    several = fake.record(fake.cell(attack=pair, target=None)) | {
        "triggers": [{"asr": 1.5, "ra": 0.2}, {"asr": 0.1, "ra": -1}]
    }
    fake.write(tmp_path, [fake.record(fake.cell()), percent, several])
    rows = {(row.one_trigger, row.seed): row for row in read(tmp_path).rows}
    left = rows[True, 1]
    inner = {"victim.asr", "victim.seconds", "passes.forward", "rounds.asr"}
    assert set(left.left_out) == {"acc", "acc_interval", "der_interval", "seconds"} | inner
    assert not left.scored
    assert (left.figures["asr"], left.before, left.rounds) == (0.5, {"acc": 0.988, "ra": 0.015}, ({"acc": 0.9},))
    assert not {"acc", "seconds", "forward"} & left.figures.keys()
    assert not {"acc", "der"} & left.intervals.keys()
    assert [(each.asr, each.ra) for each in rows[False, 0].triggers] == [(None, 0.2), (0.1, None)]
    text = build(tmp_path, ["md"], figures=False).read_text()
    assert "- Values out of range, left out: acc of 1 record," in text
    assert "| ok | out of range: " in text
    assert "9500" not in text


def test_a_cell_that_is_not_the_one_its_id_names_is_told(tmp_path: Path) -> None:
    """An edited one; not one that lacks what is null, is written in other words, or is of another version."""
    trees = [fake.cell("ibau", seed=k) for k in range(4)]
    records = [fake.record(tree) for tree in trees]
    records[0]["cell"] = trees[0] | {"poison_ratio": 0.3}
    records[1]["cell"] = {key: value for key, value in trees[1].items() if value is not None}
    records[2]["cell"] = trees[2] | {"radius": 10}
    records[3] |= {"cell": trees[3] | {"poison_ratio": 0.3}, "schema": 2}
    fake.write(tmp_path, records)
    assert [row.seed for row in read(tmp_path).rows if row.misnamed] == [0]
    text = build(tmp_path, ["md"], figures=False).read_text()
    assert f"- Cell not the one that the id names: 1 record: {records[0]['id']}\n" in text


def test_data_sets_schemas_and_splits_are_kept_apart() -> None:
    found = groups(
        rows_of(
            fake.record(fake.cell()),
            fake.record(fake.cell(dataset="gtsrb")),
            fake.record(fake.cell(seed=1), schema=2),
            fake.record(fake.cell(seed=2), split=2),
        )
    )
    assert [len(group.rows) for group in found] == [1, 1, 1, 1]
    assert len({group.title for group in found}) == 4


def test_copies_of_a_data_set_under_one_name_are_kept_apart() -> None:
    one, other = "a" * 16, "b" * 16
    told = [fake.record(fake.cell(seed=k), data=data) for k, data in enumerate((one, one, other))]
    silent = fake.record(fake.cell(seed=3))
    found = groups(rows_of(*told, silent, fake.record(fake.cell(dataset="gtsrb"), data=one)))
    titles = {group.title: len(group.rows) for group in found}
    assert titles == {
        "digits · content aaaaaaaa": 2, "digits · content bbbbbbbb": 1, "digits · content not told": 1, "gtsrb": 1
    }  # fmt: skip


def test_a_record_that_does_not_tell_its_content_is_of_the_only_one_known() -> None:
    (group,) = groups(rows_of(fake.record(fake.cell(), data="a" * 16), fake.record(fake.cell(seed=1))))
    assert (group.title, len(group.rows)) == ("digits", 2)


def test_records_from_before_splits_had_a_version_are_of_the_first() -> None:
    rows = rows_of(fake.record(fake.cell()), fake.record(fake.cell(seed=1), split=1))
    assert len(groups(rows)) == 1


def test_unscored_records_enter_no_mean() -> None:
    failed = fake.record(fake.cell(seed=1), acc=0.1, asr=1.0, status="attack_failed")
    rows = rows_of(fake.record(fake.cell(), acc=0.9, asr=0.1), failed)
    table = tables.summary(rows, variants(rows))
    assert [value.text for value in table.rows[0][:5]] == ["I-BAU", "1", "1", "90.0", "10.0"]
    assert table.rows[0][1].note == "1 not scored"


def test_settings_that_differ_make_separate_columns() -> None:
    one = fake.record(fake.cell(defense={"name": "ibau", "rounds": 1, "recipe": "paper"}))
    two = fake.record(fake.cell(defense={"name": "ibau", "rounds": 1, "recipe": "fast"}))
    assert sorted(variants(rows_of(one, two)).values()) == ["I-BAU (recipe fast)", "I-BAU (recipe paper)"]


def test_an_estimate_over_seeds_and_of_one_record() -> None:
    rows = rows_of(*(fake.record(fake.cell(seed=k), asr=asr) for k, asr in enumerate((0.1, 0.2, 0.3))))
    found = estimate(rows, "asr")
    assert found is not None
    assert found.mean == pytest.approx(0.2)
    # Student's t with two degrees of freedom: 4.303 · 0.1 / sqrt(3) = 0.2484, cut at zero.
    assert (found.low, found.high) == (0.0, pytest.approx(0.4484, abs=1e-4))
    alike = rows_of(*(fake.record(fake.cell(seed=k), asr=0.2 + 0.001 * k) for k in range(3)))
    found = estimate(alike, "asr")
    assert found is not None  # they share images: the means of the records' own ends, 0.015 below and 0.02 above
    assert (found.low, found.high) == (pytest.approx(0.186), pytest.approx(0.221))
    lacking = estimate([alike[0], replace(alike[1], intervals={})], "asr")
    assert lacking is not None
    assert lacking.high - lacking.low == pytest.approx(2 * 12.706 * 0.0005, rel=1e-3)
    single = estimate(rows[:1], "asr")
    assert single is not None
    assert (single.low, single.high) == rows[0].intervals["asr"]
    assert estimate([], "asr") is None


def test_the_interval_of_a_rate_ends_at_one_and_that_of_seconds_does_not() -> None:
    rows = rows_of(*(fake.record(fake.cell(seed=k), acc=acc, seconds=acc) for k, acc in enumerate((0.8, 0.9, 1.0))))
    rate, seconds = estimate(rows, "acc"), estimate(rows, "seconds")
    assert rate is not None
    assert seconds is not None
    assert (rate.high, seconds.high) == (1.0, pytest.approx(0.9 + 0.2484, abs=1e-4))


def test_a_run_recorded_again_for_more_is_one_run_with_all_that_was_measured() -> None:
    plain = fake.record(fake.cell(), seconds=3.0)
    more = fake.record(fake.cell(evasion_radius=0.5), seconds=9.0, evasion_accuracy=0.4)
    for order in ((plain, more), (more, plain)):
        (row,) = one_each(rows_of(*order))
        assert (row.figures["seconds"], row.figures["evasion_accuracy 0.5"]) == (3.0, 0.4)


def test_runs_under_another_time_limit_are_told_apart() -> None:
    rows = rows_of(*(fake.record(fake.cell(time_limit=limit)) for limit in (None, 60.0)))
    assert set(variants(rows).values()) == {"I-BAU (defaults)", "I-BAU (time_limit 60)"}


def test_nothing_is_left_out_of_a_record_that_took_no_time_and_no_pass() -> None:
    (row,) = rows_of(fake.record(fake.cell("none"), seconds=0.0, passes={"forward": 0, "backward": 0}))
    assert not row.left_out
    assert [row.figures[name] for name in ("seconds", "forward", "backward")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("count", "text"), [(9999, "9,999"), (12_345, "12.3 k"), (2_500_000, "2.5 M"), (3.21e9, "3.2 G"), (None, "–")]
)
def test_a_large_count_has_a_unit(count: float | None, text: str) -> None:
    assert names.count_name(count) == text


def test_the_papers_marks() -> None:
    found = marks.mark(
        {
            "none": marks.Outcome("none", 0.9, 1.0, 0.9),
            "lossy": marks.Outcome("nad", 0.7, 0.01, 0.9),
            "weak": marks.Outcome("fine_pruning", 0.9, 0.2, 0.9),
            "good": marks.Outcome("tabor", 0.85, 0.05, 0.9),
            "ibau": marks.Outcome("ibau", 0.845, 0.089, 0.9),
            "leaky": marks.Outcome("ibau", 0.845, 0.091, 0.9),
        },
    )
    assert found["none"] == ([], [])
    assert found["lossy"] == ([marks.ACC_LOST], [])
    assert found["weak"] == ([], [marks.ASR_HIGH])
    assert found["good"] == ([marks.BEST], [marks.BEST])
    # ACC within one point; ASR within four, and not quite. One class in ten is no excuse: ASR leaves the target out.
    assert found["ibau"] == ([marks.COMPARABLE], [marks.COMPARABLE])
    assert found["leaky"] == ([marks.COMPARABLE], [])


@pytest.mark.parametrize("baseline", [("tabor", 0.85, 0.05), ("nad", 0.2, 0.9)])
def test_a_destroyed_model_is_comparable_by_neither_figure(baseline: tuple[str, float, float]) -> None:
    """A constant classifier has an ASR of 0, an untouched victim the best ACC."""
    name, acc, asr = baseline
    shared = {name: marks.Outcome(name, acc, asr, 0.9)}
    found = marks.mark(
        shared | {"flat": marks.Outcome("ibau", 0.1, 0.0, 0.9), "victim": marks.Outcome("ibau", 0.9, 1, 0.9)}
    )
    assert found["flat"] == ([marks.ACC_LOST], [])
    assert found["victim"] == ([], [marks.ASR_HIGH])


def test_a_control_is_not_the_best_of_the_baselines() -> None:
    """And where there is no baseline, I-BAU is comparable to none."""
    control, mine = marks.Outcome("fine_tuning", 0.9, 0.0, 0.9), marks.Outcome("mine", 0.9, 0.0, 0.9)
    ours, baseline = marks.Outcome("ibau", 0.85, 0.05, 0.9), marks.Outcome("tabor", 0.85, 0.05, 0.9)
    found = marks.mark({"control": control, "mine": mine, "tabor": baseline, "ibau": ours})
    assert found["control"] == found["mine"] == ([], [])
    assert found["tabor"] == ([marks.BEST], [marks.BEST])
    assert found["ibau"] == ([marks.COMPARABLE], [marks.COMPARABLE])
    assert marks.mark({"control": control, "ibau": ours})["ibau"] == ([], [])


def test_a_record_tells_how_to_make_it_again(tmp_path: Path) -> None:
    file = tmp_path / "first.yaml"
    file.write_text(
        "name: first\ncell: {dataset: digits, model: simplified_vgg, attack: badnets, target: 8, poison_ratio: 0.05,"
        " clean_size: 50}\ngrid: {defense: [none, fine_tuning, ibau]}\nseeds: 2\n"
    )
    for cell in spec.load(file, [], tmp_path).cells:
        row = from_record(fake.record(cell.model_dump(mode="json")))
        again = tmp_path / "one.yaml"
        again.write_text(one_cell_sweep(row))
        assert spec.load(again, [], tmp_path).cells[-1].id == cell.id


COMMITTED = sorted((Path(__file__).parents[1] / "results").glob("*/records.jsonl"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_every_committed_record_is_made_again_by_its_command(path: Path, tmp_path: Path) -> None:
    """But for those of models from elsewhere, whose files are not here: the command gives a cell of the same id."""
    again = tmp_path / "one.yaml"
    for row in read(path.parent).rows:
        if not row.checkpoint:
            again.write_text(one_cell_sweep(row))
            assert spec.load(again, [], tmp_path).cells[-1].id == row.id
            assert one_cell_sweep(row) in command(row)


def test_a_column_that_never_changes_is_told_once() -> None:
    rows = rows_of(fake.record(fake.cell(seed=0)), fake.record(fake.cell(seed=1)))
    found = records(rows, variants(rows))
    assert dict(found.constants)["Data set"].text == "digits"
    assert "Seed" in [head.text for head in found.table.heads]


@pytest.mark.parametrize("content", [None, "", "\n\n", "garbage\n"])
def test_nothing_to_report_is_one_line(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "records.jsonl").write_text(content)
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    with pytest.raises(UserError, match=r"records\.jsonl"):
        build(tmp_path)


def test_formats(tmp_path: Path) -> None:
    fake.write(tmp_path, [fake.record(fake.cell())])
    assert build(tmp_path, ["md"]).name == "report.md"
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match="html, md, latex, csv"):
        build(tmp_path, ["pdf"])


def test_a_report_without_figures_has_its_tables_and_no_link(tmp_path: Path) -> None:
    fake.write(tmp_path, [fake.record(fake.cell())])
    assert main([str(tmp_path), "--format", "md,csv", "--no-figures"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"records.jsonl", "report.md", "tables.csv", "records.csv"}
    assert "plots/" not in (tmp_path / "report.md").read_text()
    assert main([str(tmp_path), "--format", "md"]) == 0
    assert "plots/" in (tmp_path / "report.md").read_text()


def test_latex_and_csv_draw_nothing(tmp_path: Path) -> None:
    fake.write(tmp_path, [fake.record(fake.cell())])
    assert build(tmp_path, ["csv", "latex"]).name == "tables.csv"
    assert {path.name for path in tmp_path.iterdir()} == {"records.jsonl", "tables.csv", "records.csv", "report.tex"}


def test_matplotlib_is_imported_late_and_left_as_it_was() -> None:
    code = (
        "import sys, bench.report; assert 'matplotlib' not in sys.modules\n"
        "import matplotlib as m; old = dict(m.rcParams)\n"
        "from bench.report import style\nwith style.drawing(): pass\nassert dict(m.rcParams) == old"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_best_baseline_is_so_by_acc_minus_asr() -> None:
    found = marks.mark({"a": marks.Outcome("nad", 0.9, 0.15, 0.9), "b": marks.Outcome("tabor", 0.85, 0.0, 0.9)})
    assert found == {"a": ([], []), "b": ([marks.BEST], [marks.BEST])}
