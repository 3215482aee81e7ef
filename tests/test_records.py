"""The store: nothing intact is ever lost, nothing damaged is ever taken for a record."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cells import cell, record
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.errors import UserError
from bench.cells import SCHEMA_VERSION
from bench.records import Passes, Record, RecordStore, VictimFigures, jsonable

shares = st.floats(0, 1)
intervals = st.none() | st.tuples(shares, shares)
texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)


@st.composite
def records(draw: st.DrawFn) -> Record:
    made = cell(draw(st.sampled_from(["none", "ibau"])), seed=draw(st.integers(0, 10**6)))
    figures = {name: draw(st.none() | shares) for name in ("acc", "asr", "ra", "der", "error_gap")}
    limits = {f"{name}_interval": draw(intervals) for name in figures}
    return Record(
        id=made.id,
        cell=made,
        status=draw(st.sampled_from(["ok", "no_trigger_detected", "diverged", "timeout", "failed"])),
        reason=draw(st.none() | texts),
        victim=draw(st.none() | st.just(VictimFigures(id=made.victim_id, acc=0.9, asr=1.0, ra=0.0))),
        passes=draw(st.none() | st.just(Passes(forward=3, backward=4))),
        rounds=tuple(draw(st.lists(st.dictionaries(texts, st.none() | shares | texts, max_size=3), max_size=3))),
        seconds=draw(st.none() | st.floats(0, 1e6)),
        **figures,
        **limits,
    )


@settings(max_examples=50)
@given(records())
def test_a_record_survives_its_line(one: Record) -> None:
    line = one.line()
    assert line.count(b"\n") == 1
    assert Record.model_validate_json(line) == one
    assert json.loads(line)["schema"] == SCHEMA_VERSION


@pytest.mark.parametrize(("told", "split"), [({}, 1), ({"split": 2}, 2)])
def test_a_record_is_of_the_split_that_it_tells_or_of_the_first(told: dict[str, int], split: int) -> None:
    tree = json.loads(record("none").line())
    del tree["split"]
    assert Record.model_validate_json(json.dumps(tree | told)).split == split


def test_append_and_read(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "deep" / "folder")
    assert store.read() == []
    written = [record("none"), record("ibau"), record("ibau", seed=1)]
    for one in written:
        store.append(one)
    assert store.read() == written
    assert RecordStore(store.folder).read() == written


def test_of_two_records_of_a_cell_the_latest_counts(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.append(record("none", status="failed"))
    store.append(record("none"))
    assert [one.status for one in store.read()] == ["ok"]


def test_a_record_must_be_of_its_cell(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not of its cell"):
        RecordStore(tmp_path).append(record("none").model_copy(update={"id": "0" * 16}))


@settings(max_examples=40)
@given(data=st.data())
def test_a_cut_anywhere_loses_no_intact_record(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    store = RecordStore(folder)
    lines = [record("ibau", seed=seed).line() for seed in range(3)]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    store.path.write_bytes(content[:cut])
    # A line is whole once its closing brace is there, with or without its newline.
    whole = sum(cut >= sum(map(len, lines[: n + 1])) - 1 for n in range(3))
    assert len(store.read()) == whole
    store.append(record("none"))
    store.repair()
    assert [one.cell.seed for one in store.read()] == [*range(whole), 0]
    assert all(json.loads(line) for line in store.path.read_bytes().splitlines())


def test_damage_in_the_middle_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = RecordStore(tmp_path)
    store.path.write_bytes(record("none").line() + b'{"schema": 1, "id": "ab\n\x00\xff\n[]\n' + record("ibau").line())
    with caplog.at_level(logging.WARNING):
        assert store.repair() == 3
    assert "3 damaged" in caplog.text
    assert [one.cell.defense["name"] for one in store.read()] == ["none", "ibau"]
    assert (tmp_path / "records.jsonl.damaged").read_bytes() == b'{"schema": 1, "id": "ab\n\x00\xff\n[]\n'
    assert store.repair() == 0


def test_reading_writes_nothing(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.path.write_bytes(record("none").line() + b"{cut")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(store.read()) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2; expected 1"),
        ({"colour": 1}, "colour"),
        ({"status": "fine"}, "status"),
        ({"cell": 1}, "cell"),
    ],
)
def test_what_is_no_record_of_ours_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    store = RecordStore(tmp_path)
    store.path.write_text(json.dumps({**json.loads(record("none").line()), **change}) + "\n")
    with pytest.raises(UserError, match=f"line 1: .*{message}|line 1: {message}"):
        store.read()


def test_dropped_records_are_kept_elsewhere(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    failed = record("none", status="failed")
    store.append(failed)
    store.append(record("ibau"))
    store.drop([failed.id])
    assert [one.cell.defense["name"] for one in store.read()] == ["ibau"]
    assert (tmp_path / "records.jsonl.superseded").read_bytes() == failed.line()


def test_appends_from_many_threads_do_not_mix(tmp_path: Path) -> None:
    def work(start: int) -> None:
        for seed in range(start, start + 10):
            RecordStore(tmp_path).append(record("ibau", seed=seed))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 40, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.cell.seed for one in RecordStore(tmp_path).read()) == list(range(40))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordStore(tmp_path)
    store.append(record("none"))
    before = store.path.read_bytes()
    real = os.write

    def write(file: int, content: Any) -> int:
        if len(content) > 100:
            return real(file, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        store.append(record("ibau"))
    monkeypatch.undo()
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_never_written(value: float) -> None:
    with pytest.raises(ValidationError):
        Record.model_validate({**record("none").model_dump(by_alias=True), "acc": value})
    line = record("none").model_copy(update={"rounds": ({"loss": value},)}).line()
    assert json.loads(line)["rounds"] == [{"loss": None}]


def test_jsonable() -> None:
    found = jsonable(
        {"a": np.float32(0.5), 2: [np.int64(3), math.nan, None], "c": np.array([1.0, math.inf]), "d": Path("x")}
    )
    assert found == {"a": 0.5, "2": [3, None, None], "c": [1.0, None], "d": "x"}


def test_a_text_that_no_file_can_hold_is_told_as_far_as_it_goes() -> None:
    """A file's name with a stray byte, say, wherever a defense puts it."""
    stray = "x\udcff"
    found = jsonable({stray: [stray, Path(stray)], "fine": "é→"})
    assert found == {"x?": ["x?", "x?"], "fine": "é→"}
    line = record("none").model_copy(update={"details": found, "rounds": (found,)}).line()
    assert Record.model_validate_json(line).details == found
