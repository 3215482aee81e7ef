"""Figures in the documents are those of the committed records."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import fake_cells
import pytest

from adapters.errors import UserError
from bench.ledger import Ledger, keep
from bench.records import RecordStore
from bench.report.embed import embed, main, table

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_current(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert embed(text, ROOT) == text, "run: python -m bench.report.embed README.md docs/*.md"


def test_the_figures_of_the_documents_are_there() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"!\[[^]]*\]\((figures/[^)]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).read_text(encoding="utf-8").lstrip().startswith("<?xml"), target


def test_a_plot_is_the_reports_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").touch()
    shutil.copytree(ROOT / "results" / "gtsrb_badnets", tmp_path / "results" / "mine")
    page = tmp_path / "page.md"
    page.write_text("<!-- plot: results/mine 1-gtsrb-acc-asr -->\n<!-- /plot -->\n")
    assert main([str(page), "--check"]) == 1
    assert not (tmp_path / "figures").exists()
    assert main([str(page)]) == 0
    assert "![gtsrb acc asr](figures/mine-1-gtsrb-acc-asr.svg)" in page.read_text()
    assert "<svg" in (tmp_path / "figures" / "mine-1-gtsrb-acc-asr.svg").read_text()
    assert main([str(page), "--check"]) == 0
    page.write_text("<!-- plot: results/mine nothing -->\n<!-- /plot -->\n")
    capsys.readouterr()
    assert main([str(page)]) == 2
    assert "plot: found 'nothing'; expected one of: 1-gtsrb-acc-asr" in capsys.readouterr().err


def test_a_table_is_the_reports() -> None:
    text = embed("<!-- report: results/baselines 1_2_attack_cases -->\n<!-- /report -->\n", ROOT)
    head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "Neural Cleanse" in head
    assert rule.count("---") == head.count("|") - 1
    assert any(row.startswith("| BadNets") for row in rows)
    assert re.search(r"\d+ records on .+; torch .+; commit .+\.\n<!-- /report -->", text)
    with pytest.raises(UserError, match=r"report: found 'nothing'; expected one of: summary, .*1_2_attack_cases"):
        embed("<!-- report: results/baselines nothing -->\n<!-- /report -->\n", ROOT)


@pytest.mark.parametrize(
    ("cells", "records", "head"),
    [
        ({"clean_size": 50}, {}, "clean size"),
        ({"radius": 2.5}, {}, "radius"),
        ({"dataset": "gtsrb"}, {}, "dataset"),
        ({"seed": 1}, {"data": "b" * 16}, "content"),
        ({"seed": 1}, {"split": 2}, "split"),
    ],
)
def test_what_must_not_be_averaged_has_a_line_of_its_own(
    cells: dict[str, Any], records: dict[str, Any], head: str
) -> None:
    one = fake_cells.record().model_copy(update={"data": "a" * 16, "split": 1})
    other = fake_cells.record(**cells).model_copy(update={"data": "a" * 16, "split": 1} | records)
    first, _, *lines = table([one, other], ["defense"]).split("\n\n")[0].splitlines()
    assert first.startswith(f"| defense | {head} | runs |")
    assert len(lines) == 2


def test_a_content_that_is_not_told_is_the_only_one_known() -> None:
    told = fake_cells.record().model_copy(update={"data": "a" * 16})
    other, silent = fake_cells.record(seed=1), fake_cells.record(seed=2)
    assert table([told, other, silent], ["defense"]).startswith("| defense | runs |")


def test_a_block_without_records_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found none in nowhere"):
        embed("<!-- records: nowhere rows: defense -->\n<!-- /records -->\n", tmp_path)


def test_an_unreadable_document_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.md")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_sweeps_took_is_in_their_ledgers(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    RecordStore(folder).append(fake_cells.record())
    text = f"<!-- runs: {folder} -->\n<!-- /runs -->"
    with pytest.raises(UserError, match=r"runs: found no ledger\.json of a sweep in .*tiny"):
        embed(text, Path("/"))
    made = Ledger(busy=90.0, work=60.0, first_start=10.0, last_end=60.0)
    made.offers = [(0.0, 2)]
    for finished in (False, True):
        keep(folder, made.entry(finished=finished))
    assert "| tiny | 1 | 2 | 1:40 | 2 | 90 % | 60 % | – |" in embed(text, Path("/"))
    (folder / "ledger.json").write_text('{"schema": 1, "runs": [{"seconds": "soon"}]}')
    with pytest.raises(UserError, match="found no ledger"):
        embed(text, Path("/"))


def test_how_loose_the_bounds_are_is_computed_from_the_records(tmp_path: Path) -> None:
    rows = [
        {"gap": 0.01, "bound": 0.5, "printed": 10.0},
        {"gap": 0.02, "bound": 2.0, "printed": 400.0},
        {"gap": 0.0, "bound": 0.02, "printed": 1.0},
    ]
    (tmp_path / "network_gap_clean.json").write_text(json.dumps({"rows": rows}))
    text = embed(f"<!-- looseness: {tmp_path} -->\n<!-- /looseness -->", Path("/"))
    assert "| Theorem 3, over n | 3 | 1.0 | 50.0 | 1.0e2× | 1000.0 | 1.0e4× |" in text
    assert "over W" not in text
    (tmp_path / "network_gap_clean.json").unlink()
    assert "No gaps are committed" in embed(f"<!-- looseness: {tmp_path} -->\n<!-- /looseness -->", Path("/"))
