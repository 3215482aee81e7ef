"""Figures in the documents are those of the committed records."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.errors import UserError
from bench.report.embed import embed, main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_current(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert embed(text, ROOT) == text, "run: python -m bench.report.embed README.md docs/*.md"


def test_a_block_without_records_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found none in nowhere"):
        embed("<!-- records: nowhere rows: defense -->\n<!-- /records -->\n", tmp_path)


def test_an_unreadable_document_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.md")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
