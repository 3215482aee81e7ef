"""Records of injected faults, and how a document shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.errors import UserError
from bench.report.embed import embed
from bench.report.faults import FaultRecord, forget, markdown, put, read


def _record(fault: str = "driver killed", **changes: Any) -> FaultRecord:
    tree: dict[str, Any] = {
        "test": f"test of {fault}", "fault": fault, "how": "SIGKILL.", "injected": 3,
        "expected": 10, "lost": 0, "doubled": 0, "others": 9,
        "seen": ("\x1b[33minterrupted", "~~~ <script>"), "after": "The same command.", "commit": "c0ffee1234",
        "dirty": False, "hardware": "a processor", "torch": "2.0",
    }  # fmt: skip
    return FaultRecord(**{**tree, **changes})


def test_a_later_record_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    for record in (_record(), _record("disk full"), _record(injected=4)):
        put(tmp_path / "faults", record)
    assert read(tmp_path / "faults") == [_record(injected=4), _record("disk full")]


def test_the_document_counts_and_quotes() -> None:
    shown = markdown([_record(), _record("disk full", lost=1, injected=2)])
    assert "| driver killed | 3 | 10 | 0 | 0 | 9 |" in shown
    assert "| **all** | **5** | **20** | **1** | **0** | **18** |" in shown
    assert "~~~text\n\\x1b[33minterrupted\n~ ~ ~ <script>\n~~~" in shown
    assert shown.endswith("a processor; torch 2.0; commit c0ffee1.\n")


def test_a_sweep_that_several_faults_share_is_counted_once() -> None:
    both = [_record(name, sweep="misbehaving", expected=28) for name in ("defense raises", "defense exits")]
    shown = markdown([_record(), *both])
    assert "| defense exits | 3 | 28 | 0 | 0 | 9 |" in shown
    assert "| **all** | **9** | **38** | **0** | **0** | **18** |" in shown
    assert "the sum has these once" in shown
    assert "the sum has these once" not in markdown([_record(), both[0]])


def test_a_block_is_filled_from_the_records(tmp_path: Path) -> None:
    put(tmp_path / "results" / "faults", _record())
    text = "# Reliability\n\n<!-- faults: results/faults -->\nold\n<!-- /faults -->\nend\n"
    filled = embed(text, tmp_path)
    assert "old" not in filled
    assert "### driver killed" in filled
    assert filled.endswith("<!-- /faults -->\nend\n")
    assert embed(filled, tmp_path) == filled


def test_where_nothing_was_injected_the_document_says_so(tmp_path: Path) -> None:
    text = "<!-- faults: results/faults -->\nold\n<!-- /faults -->\n"
    assert (
        embed(text, tmp_path) == "<!-- faults: results/faults -->\n*No faults are committed yet.*\n<!-- /faults -->\n"
    )


def test_what_is_injected_again_leaves_no_old_record(tmp_path: Path) -> None:
    names = ("driver killed", "disk full", "clock jumps")
    for name in names:
        put(tmp_path, _record(name))
    forget(tmp_path, {"test of disk full", "test of something else"})
    assert [one.fault for one in read(tmp_path)] == ["driver killed", "clock jumps"]
    forget(tmp_path, None)
    assert read(tmp_path) == []
    forget(tmp_path / "nowhere", None)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("content", ["{", '{"schema": 1}\n'])
def test_what_is_no_record_of_a_fault_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "faults.jsonl").write_text(content)
    with pytest.raises(UserError, match="expected"):
        read(tmp_path)
