"""What a report is written as: LaTeX, CSV, the command of a record, pictures beside the records."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import fake_records as fake
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.report import FORMATS, attachments, figures, html, latex, markdown, marks, spreadsheet, style, sweep_files
from bench.report.figures.sensitivity import curves
from bench.report.figures.series import series
from bench.report.figures.spread import spread
from bench.report.figures.tsne import layout
from bench.report.groups import groups, variants
from bench.report.page import Page, compose
from bench.report.records_table import command, doubts, one_cell_sweep
from bench.report.rows import from_record, read

ROOT = Path(__file__).parents[1]
COMMITTED = sorted(path.parent.name for path in (ROOT / "results").glob("*/records.jsonl"))
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


def page_of(folder: Path, *records: dict[str, Any]) -> Page:
    fake.write(folder, list(records))
    return compose(folder, read(folder), draw=False)


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_report_is_that_of_the_committed_records(name: str) -> None:
    """Its tables as numbers, and the page with its claims, notes and records; but for the figures, no byte differs."""
    folder = ROOT / "results" / name
    assert doubts(read(folder).rows) == []
    page = compose(folder, read(folder), draw=False)
    told = f"run: python -m bench.report results/{name} --format md,csv --no-figures"
    for file, render in {"tables.csv": spreadsheet.figures, "report.md": markdown.render}.items():
        assert (folder / file).is_file(), told
        assert render(page) == (folder / file).read_text(encoding="utf-8"), told


def test_some_records_are_committed() -> None:
    assert COMMITTED


@given(st.text())
def test_latex_takes_any_text_literally(text: str) -> None:
    """What is left without the escapes holds nothing that LaTeX would act on."""
    escaped = latex.escape(text)
    known = r"\\text[a-z]+\{\}|\\[{}$&#%_]|\$\\?(?:[A-Za-z]+|-)\$|\\dots\{\}|\{[][*]\}"
    assert not re.search(r"[\\{}$&#%_~^\n]", re.sub(known, "", escaped))
    assert not re.match(r"[][*]", escaped)  # an argument of what ends the line before it
    assert all(ord(letter) < 0x180 for letter in escaped)


def test_every_mark_has_its_symbol_in_latex() -> None:
    assert all("U+" not in latex.escape(mark.symbol) for mark in marks.ALL)


def test_no_trigger_detected_is_a_cross_in_every_format(tmp_path: Path) -> None:
    missed = fake.record(fake.cell("tabor"), 0.98, 0.97, status="no_trigger_detected", reason="no class lies below")
    page = page_of(tmp_path, missed, fake.record(fake.cell("none"), 0.98, 0.97), fake.record(fake.cell()))
    written = {file: render(page) for files in FORMATS.values() for file, render in files.items()}
    meaning = marks.UNDETECTED.meaning
    assert (
        f'<span class="mark undetected" title="{meaning}" aria-label="{meaning}" role="img">×</span>'
        in (written["report.html"])
    )
    assert re.search(r"\| 97\.0 [▲ ]*× \(", written["report.md"])
    assert re.search(r"97\.0(\$\^\{\\blacktriangle\}\$)?\$\^\{\\times\}\$", written["report.tex"])
    (line,) = [each for each in csv.DictReader(io.StringIO(written["tables.csv"])) if "undetected" in each["marks"]]
    assert (line["table"], line["column"], line["text"]) == ("1_2_attack_cases", "TABOR ASR", "97.0")
    assert any("no_trigger_detected" in row for row in csv.reader(io.StringIO(written["records.csv"])))


def test_latex_tables_have_as_many_cells_as_heads(tmp_path: Path) -> None:
    records = [fake.record(fake.cell(name, attack="a&b_{}")) for name in ("none", "ibau")]
    text = latex.render(page_of(tmp_path, *records))
    for spec, body in re.findall(
        r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL
    ):
        for line in (line for line in body.splitlines() if line.endswith(r"\\")):
            spanned = sum(int(number) - 1 for number in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + spanned == len(spec)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") >= 2


def test_csv_holds_every_figure_as_a_number(tmp_path: Path) -> None:
    records = [fake.record(fake.cell(seed=k), 0.9 + k / 100, 0.01 * k) for k in range(3)]
    page = page_of(tmp_path, *records)
    lines = list(csv.DictReader(io.StringIO(spreadsheet.figures(page))))
    (found,) = [each for each in lines if each["table"] == "1_2_attack_cases" and each["column"] == "I-BAU ACC"]
    assert float(found["value"]) == pytest.approx(0.91)
    assert (found["runs"], found["text"]) == ("3", "91.0")
    assert float(found["low"]) < 0.91 < float(found["high"])
    every = list(csv.DictReader(io.StringIO(spreadsheet.records(page))))
    assert sorted(float(each["ACC"]) for each in every) == [0.9, 0.91, 0.92]


def test_csv_holds_the_settings_of_each_defense(tmp_path: Path) -> None:
    page = page_of(
        tmp_path, fake.record(fake.cell("fine_tuning", defense={"name": "fine_tuning", "epochs": 2, "x": None}))
    )
    (line,) = csv.DictReader(io.StringIO(spreadsheet.records(page)))
    assert line["settings"] == '{"epochs":2}'


def test_csv_holds_what_all_records_share_as_numbers_too(tmp_path: Path) -> None:
    changes = {"poison_ratio": 0.2, "clean_size": 5000}
    page = page_of(tmp_path, *(fake.record(fake.cell(seed=k, **changes)) for k in range(2)))
    for line in csv.DictReader(io.StringIO(spreadsheet.records(page))):
        assert (float(line["Poison ratio"]), float(line["n"]), line["Model"]) == (0.2, 5000, "simplified_vgg")
    assert "Poison ratio 20 %, n 5,000" in markdown.render(page)
    assert "Poison ratio <b>20 %</b>" in html.render(page)


def test_csv_holds_counts_as_counts(tmp_path: Path) -> None:
    records = [fake.record(fake.cell(seed=k), asr=0.4 * k) for k in range(2)]
    lines = list(csv.DictReader(io.StringIO(spreadsheet.figures(page_of(tmp_path, *records)))))
    found = {(each["table"], each["column"]): (each["value"], each["text"]) for each in lines}
    assert found["6_seconds_to_effect", "Cells with effect"] == ("1", "1 of 2")
    assert found["summary", "Cells"] == found["summary", "Seeds"] == ("2", "2")


def test_csv_holds_no_formula(tmp_path: Path) -> None:
    records = [fake.record(fake.cell(model="=1+1", attack="@x", seed=k), reason="+2") for k in range(2)]
    page = page_of(tmp_path, *records)
    for text in (spreadsheet.figures(page), spreadsheet.records(page)):
        rows = list(csv.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) == 1
        assert not [value for row in rows for value in row if re.match(r"[=@+]", value)]


HOSTILE = ("x\nEND\ntouch pwned\n", "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", "END", "\tEND\n")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_command_runs_nothing_but_the_sweep(tmp_path: Path, text: str) -> None:
    """It is given to a shell whose ``python`` only writes down what it was called with."""
    tree = fake.cell(attack=text, model=text, defense={"name": text, text: text})
    row = from_record(fake.record(tree, id=text))
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@" > called\n')
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-c", command(row)], cwd=tmp_path, env={"PATH": path}, check=True, timeout=60)
    (written,) = tmp_path.glob("cell-*.yaml")
    assert (tmp_path / "called").read_text().split() == ["-m", "bench.sweep", written.name]
    assert not (tmp_path / "pwned").exists()
    assert yaml.safe_load(written.read_text()) == yaml.safe_load(one_cell_sweep(row))
    assert yaml.safe_load(written.read_text())["cell"]["attack"] == row.cell["attack"]


def test_pictures_of_the_folder_alone_are_shown(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(PNG)
    folder = tmp_path / "results"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / ("a" * 16 + ".png")).write_bytes(PNG)
    (folder / "pictures" / ("b" * 16 + ".png")).write_bytes(b"<svg onload=alert(1)>")
    (folder / "pictures" / ("c" * 16 + ".png")).symlink_to(outside)
    (folder / "gallery_gtsrb.png").write_bytes(PNG)
    names = [f"pictures/{letter * 16}.png" for letter in "abcd"]
    details = {"triggers": {"3": {"mask": names[0], "other": [*names[1:], "../outside.png", str(outside)]}}}
    page = page_of(folder, fake.record(fake.cell(), details=details))
    assert [picture.path for picture in page.recovered] == [names[0]]
    assert page.recovered[0].caption.endswith("seed 0: triggers 3 mask")
    assert page.recovered[0].address.startswith("data:image/png;base64,iVBORw0KGgo")
    assert [picture.path for picture in page.galleries] == ["gallery_gtsrb.png"]
    assert attachments.galleries(tmp_path / "nowhere") == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
BASE = fake.record(fake.cell())
SPOTS = st.sampled_from([*((key,) for key in BASE), *(("cell", key) for key in BASE["cell"]), ("cell", "mix")])


@settings(max_examples=60)
@given(st.lists(st.tuples(SPOTS, JSON), max_size=4))
@example([(("acc",), 2.7e154)])  # its square is no float
def test_no_record_stops_the_report(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    """Whatever JSON stands where in a record, the others are still told of, in every format without figures."""
    record = {**BASE, "cell": dict(BASE["cell"])}
    for spot, value in changes:
        tree = record["cell"] if len(spot) == 2 and isinstance(record["cell"], dict) else record
        tree[spot[-1]] = value
    with tempfile.TemporaryDirectory() as name:
        folder = fake.write(Path(name), [fake.record(fake.cell(seed=1), id="intact"), record])
        page = compose(folder, read(folder), draw=False)
    assert "intact" in [details.id for details in page.records.details]
    assert all(render(page) for files in FORMATS.values() for render in files.values())


def test_a_budget_and_what_it_leaves_out_are_told(tmp_path: Path) -> None:
    record = fake.record(fake.cell())
    part = {"name": "table2", "reductions": "one seed", "cells": [record["id"], 3]}
    (tmp_path / "sweep.json").write_text(json.dumps({"budget": "small", "parts": [part, "x", {"name": 4}]}))
    page = page_of(tmp_path, record)
    assert page.reductions == (("table2", "one seed"),)
    assert ("budget", "small") in page.facts
    assert "one seed" in latex.render(page)


def test_what_was_set_after_a_budget_is_told_with_it(tmp_path: Path) -> None:
    record = fake.record(fake.cell())
    digits = {"name": "table2", "reductions": "The digits.", "cells": []}
    moved = {**digits, "overrides": ["cell.dataset=gtsrb", 3, "seeds=2"]}
    whole = {"name": "table4", "overrides": ["seeds=1"], "cells": []}
    (tmp_path / "sweep.json").write_text(
        json.dumps({"parts": [moved, moved, digits, {"name": "x", "overrides": "y"}, whole]})
    )
    page = page_of(tmp_path, record)
    told = "The digits. (then set: cell.dataset=gtsrb, seeds=2)"
    set_alone = ("table4", "Set on the command line: seeds=1.")
    assert page.reductions == (("table2", told), ("table2", "The digits."), set_alone)
    assert all(told in render(page) for render in (html.render, markdown.render, latex.render))


def test_a_sweep_that_is_not_done_says_so(tmp_path: Path) -> None:
    record = fake.record(fake.cell())
    parts = [{"name": "table2", "cells": [record["id"], "a"]}, {"name": "table4", "cells": ["a", "b"]}]
    (tmp_path / "sweep.json").write_text(json.dumps({"parts": parts}))
    told = "2 of 3 cells have no record yet"
    page = page_of(tmp_path, record)
    assert ("Not done", told) in page.facts
    assert all(told in render(page) for render in (html.render, markdown.render, latex.render))
    (tmp_path / "sweep.json").write_text(json.dumps({"parts": [{"name": "table2", "cells": [record["id"]]}]}))
    assert "Not done" not in dict(page_of(tmp_path, record).facts)


def test_parts_of_one_name_keep_their_records(tmp_path: Path) -> None:
    parts = [{"name": "table2", "cells": ["a", "b"], "overrides": ["seeds=2"]}, {"name": "table2", "cells": ["c"]}]
    (tmp_path / "sweep.json").write_text(json.dumps({"parts": parts}))
    assert sweep_files.read(tmp_path).cells == {"table2": {"a", "b", "c"}}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"parts": 3}', '{"parts": [[]], "budget": []}'])
def test_a_file_that_is_no_sweeps_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    found = sweep_files.read(tmp_path)
    assert (found.budget, found.reductions) == ("", ())


def test_spread_needs_three_runs_of_one_case() -> None:
    rows = [from_record(fake.record(fake.cell(seed=k), asr=0.1 * k)) for k in range(3)]
    assert [plot.stem for plot in spread(series(rows, variants(rows)))] == ["asr-spread", "acc-spread"]
    other = from_record(fake.record(fake.cell(attack="blend", seed=2)))
    assert spread(series([*rows[:2], other], variants([*rows, other]))) == []


def drawn_notes(*records: dict[str, Any]) -> dict[str, str]:
    """Figure to what it says it leaves out."""
    (group,) = groups([from_record(each) for each in records])
    with style.drawing():
        return {plot.stem: plot.note for plot in figures.draw(group)}


def test_variants_that_are_not_drawn_are_counted(tmp_path: Path) -> None:
    records = [fake.record(fake.cell("nad", defense={"name": "nad", "epochs": k})) for k in range(14)]
    assert set(drawn_notes(*records).values()) == {"Not drawn: 2 more variants."}
    assert set(drawn_notes(*records[:12]).values()) == {""}
    page = compose(fake.write(tmp_path, records), read(tmp_path))
    assert "<figcaption>Not drawn: 2 more variants.</figcaption>" in html.render(page)
    assert "acc-asr.png)\n\nNot drawn: 2 more variants." in markdown.render(page)


def test_cases_records_and_maps_that_are_not_drawn_are_counted() -> None:
    cases = [fake.record(fake.cell(attack=f"attack {k}", seed=seed)) for k in range(13) for seed in range(3)]
    assert drawn_notes(*cases)["asr-spread"] == "Not drawn: 1 more case."
    runs = [fake.record(fake.cell(seed=seed)) for seed in range(61)]
    assert drawn_notes(*runs)["acc-rounds"] == "Not drawn: 30 more records."
    assert drawn_notes(*runs[:60])["acc-rounds"] == ""
    grid = [
        fake.record(fake.cell(poison_ratio=ratio / 100, clean_size=size, radius=radius))
        for ratio in range(1, 12) for size in (50, 100) for radius in (5.0, 10.0)
    ]  # fmt: skip
    found = {stem: note for stem, note in drawn_notes(*grid).items() if "-map-" in stem}
    assert [stem for stem, note in found.items() if note == "Not drawn: 3 more maps."] == ["asr-map-8", "acc-map-8"]
    assert len(found) == 16


def test_a_defense_looks_alike_in_every_figure() -> None:
    nad = from_record(fake.record(fake.cell("nad", defense={"name": "nad"})))
    tabor = from_record(fake.record(fake.cell("tabor", defense={"name": "tabor"})))
    ours = from_record(fake.record(fake.cell()))
    both, alone = (series(rows, variants(rows)).looks for rows in ([nad, tabor, ours], [nad]))
    assert both["NAD"] == alone["NAD"]
    assert len(set(both.values())) == 3


POINTS = [[0.0, 1.0], [2, 3.5]]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"before": [[0.0, 1.0]]}, False),
        ({"after": [[0.0, "1"], [1, 2]]}, False),
        ({"labels": [1]}, False),
        ({"triggered": "01"}, False),
        ({"before": [], "after": [], "labels": [], "triggered": []}, False),
        ({"before": None}, False),
    ],
)
def test_a_layout_is_four_lists_of_one_length(change: dict[str, Any], kept: bool) -> None:
    tree = {"labels": [0, 1], "triggered": [0, 1], "before": POINTS, "after": POINTS} | change
    assert (layout(tree) is not None) == kept


def test_a_curve_is_over_the_same_cases_at_each_of_its_places() -> None:
    """Two flat cases of unequal height, one of which lacks a place: no slope."""
    cases = (("badnets", 8, 0.05, (1.0, 10.0)), ("blend", 1, 0.65, (1.0, 5.0, 10.0)))
    rows = [
        from_record(fake.record(fake.cell("ibau", attack=attack, target=target, radius=radius), 0.98, asr))
        for attack, target, asr, radii in cases
        for radius in radii
    ]
    with style.drawing():
        drawn = {plot.stem: plot.figure.axes[0].get_lines()[0] for plot in curves(rows)}
    assert drawn["asr-by-radius"].get_xdata().tolist() == [1, 5, 10]
    assert drawn["asr-by-radius"].get_ydata().tolist() == pytest.approx([0.65] * 3)


def test_checkpoints_of_one_name_are_called_by_their_folders(tmp_path: Path) -> None:
    apart = ("a/badnet/attack_result.pt", "a/weak/attack_result.pt", "b/weak/attack_result.pt")
    files = {path: path for path in apart} | {"a/one.pth": "1", "b/one.pth": "1", "a/other.pth": "2"}
    records = []
    for seed, (path, digest) in enumerate(files.items()):
        victim = {"checkpoint": path, "digest": digest, "trigger": "badnets", "target": 8}
        cell = fake.cell("none", seed=seed) | {"attack": None, "target": None, "victim": victim}
        records.append(fake.record(cell, 0.9, 0.9))
    rows = read(fake.write(tmp_path / "results", records)).rows
    assert {row.checkpoint for row in rows} == {*apart, "one.pth", "other.pth"}


def test_trigger_images_of_one_name_are_called_by_their_folders(tmp_path: Path) -> None:
    """As attack, as one of several, and of a checkpoint; blends of one image by what they are made with."""
    stamp, other = ({"image": f"{folder}/t.png", "mode": "replace", "digest": folder} for folder in "ab")
    faint, strong = ({"image": "c/u.png", "mode": "blend", "alpha": alpha, "digest": "c"} for alpha in (0.1, 0.2))
    several = [{"attack": stamp, "target": 1}, {"attack": other, "target": 2}]
    brought = {"checkpoint": "m.pth", "trigger": other, "target": 3}
    masked = [
        {"image": "d/v.png", "mode": "replace", "mask": f"{mask}/m.png", "digest": mask} for mask in ("one", "two")
    ]
    cells = [fake.cell("none", attack=one) for one in (stamp, faint, strong, *masked)]
    cells += [
        fake.cell("none", attack=several, target=None),
        fake.cell("none", attack=None, target=None, victim=brought),
    ]
    figures = [{"asr": 0.9, "ra": 0.1}, {"asr": 0.8, "ra": 0.2}]
    records = [fake.record(cell, 0.9, 0.9, triggers=figures if cell["attack"] is several else None) for cell in cells]
    rows = read(fake.write(tmp_path / "results", records)).rows
    named = ("a/t.png (replace)", "b/t.png (replace)")
    both = f"{named[0]}→1, {named[1]}→2"
    blends, masks = ("u.png (blend 0.1)", "u.png (blend 0.2)"), ("one/m.png", "two/m.png")
    assert {row.attack for row in rows} == {*named, *blends, both, *(f"v.png (replace, mask {one})" for one in masks)}
    assert [each.attack for row in rows for each in row.triggers] == list(named)
