"""A full disk: nothing is dropped, the order is kept, and what the store never takes is kept elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_cells import record
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import outbox, sweep
from bench.outbox import NoRoomError, Outbox
from bench.records import Record, RecordStore


class Disk(RecordStore):
    """A store that is full at times."""

    full = False

    def append(self, record: Record) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().append(record)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.0)


@settings(max_examples=40, deadline=None)
@given(events=st.lists(st.sampled_from(["put", "flush", "fill", "free"]), max_size=30))
def test_whatever_happens_each_record_is_written_once_and_in_order(
    events: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = Disk(tmp_path_factory.mktemp("disk"))
    box, count = Outbox(disk), 0
    for event in events:
        if event == "put":
            box.put(record("ibau", seed=count))
            count += 1
        elif event == "flush":
            box.flush()
            assert box.blocked is (disk.full and box.blocked)
        else:
            disk.full = event == "fill"
        assert [one.cell.seed for one in disk.read()] == list(range(len(disk.read())))
    disk.full = False
    box.close()
    assert [one.cell.seed for one in disk.read()] == list(range(count))
    assert len(disk.path.read_bytes().splitlines()) == count if count else not disk.path.exists()


def test_the_user_is_told_once_of_the_wait_and_once_of_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(tmp_path)
    box = Outbox(disk)
    disk.full = True
    with caplog.at_level(logging.WARNING):
        box.put(record("none"))
        box.put(record("ibau"))
        box.flush()
        assert caplog.text.count("No space left on device): nothing new is started") == 1
        assert box.blocked
        disk.full = False
        box.flush()
    assert caplog.text.count("can be written to again") == 1
    assert not box.blocked


def test_what_finds_no_room_is_rescued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", -1.0)
    disk = Disk(tmp_path / "results")
    box = Outbox(disk)
    box.put(record("none"))
    disk.full = True
    box.put(record("ibau"))
    assert box.exhausted
    with pytest.raises(
        NoRoomError, match=r"No space left on device.*1 record\(s\) are in .*append that file"
    ) as caught:
        box.close()
    (rescued,) = tmp_path.glob("results-records-*.jsonl")
    assert str(rescued) in str(caught.value)
    with disk.path.open("ab") as file:
        file.write(rescued.read_bytes())
    assert [one.cell.defense["name"] for one in disk.read()] == ["none", "ibau"]


def test_an_outbox_in_which_nothing_waits_is_not_exhausted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", -1.0)
    box = Outbox(Disk(tmp_path))
    assert not box.exhausted
    box.put(record("ibau"))
    assert not box.exhausted
    box.close()


def test_patience_counts_from_the_first_record_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(outbox, "time", SimpleNamespace(monotonic=lambda: now))
    disk = Disk(tmp_path)
    disk.full = True
    box = Outbox(disk)
    for seed in range(3):
        box.put(record("ibau", seed=seed))
        assert not box.exhausted
        now += outbox.PATIENCE_SECONDS / 2.5
    assert box.exhausted


def test_room_that_comes_after_the_sweep_has_given_up_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", -1.0)
    disk = Disk(tmp_path / "results")
    box = Outbox(disk)
    disk.full = True
    box.put(record("ibau"))
    assert box.exhausted
    disk.full = False
    with pytest.raises(NoRoomError, match=r"every record is in it now, but cells may be left"):
        box.close()
    assert len(disk.read()) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "sweep.json"), "sweep.json: No space left on device; expected room"),
        (NoRoomError("records are in FILE"), "records are in FILE"),
    ],
)
def test_the_command_says_so_in_one_line(
    error: OSError, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "run", _raises(error))
    assert sweep.main(["x.yaml", "--out", str(tmp_path)]) == sweep.NO_ROOM
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {words}")
    assert shown.count("\n") == 1


def test_other_errors_of_the_system_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "run", _raises(OSError(2, "No such file")))
    with pytest.raises(OSError, match="No such file"):
        sweep.main(["x.yaml", "--out", str(tmp_path)])


def _raises(error: OSError) -> Callable[[sweep.Options], int]:
    def run(options: sweep.Options) -> int:
        raise error

    return run
