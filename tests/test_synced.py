"""A power cut takes no name: after a file is created or replaced, its content and then its folder are synced."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_cells import record

from bench import files
from bench.records import RecordStore

Event = tuple[str, tuple[int, int]]


def _which(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


class Disk:
    """Sees what is synced and renamed, in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[Event] = []
        self._sync, self._replace = os.fsync, os.replace
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(os, "replace", self.replace)

    def fsync(self, handle: int) -> None:
        found = os.fstat(handle)
        self.events.append(("folder" if stat.S_ISDIR(found.st_mode) else "file", _which(found)))
        self._sync(handle)

    def replace(self, source: Any, target: Any) -> None:
        self._replace(source, target)
        self.events.append(("renamed", _which(os.stat(target))))

    def survives(self, path: Path) -> bool:
        """Whether ``path`` would be there with its content after a power cut: its content synced before it got its
        name, and its folder after."""
        own, folder = _which(path.stat()), _which(path.parent.stat())
        content = max((at for at, event in enumerate(self.events) if event == ("file", own)), default=None)
        named = max((at for at, event in enumerate(self.events) if event == ("renamed", own)), default=content)
        entries = [at for at, event in enumerate(self.events) if event == ("folder", folder)]
        return content is not None and named is not None and content <= named and any(at > named for at in entries)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_new_store_survives_with_every_folder_above_it(tmp_path: Path, disk: Disk) -> None:
    store = RecordStore(tmp_path / "runs" / "tiny")
    store.append(record("none"))
    assert disk.survives(store.path)
    for folder in (tmp_path, tmp_path / "runs"):
        assert ("folder", _which(folder.stat())) in disk.events


def test_a_line_more_syncs_the_file_alone(tmp_path: Path, disk: Disk) -> None:
    store = RecordStore(tmp_path)
    store.append(record("none"))
    del disk.events[:]
    store.append(record("ibau"))
    assert disk.events == [("file", _which(store.path.stat()))]


def _repaired(store: RecordStore) -> None:
    store.path.write_bytes(record("none").line() + b"{cut\n")
    assert store.repair() == 1


def _dropped(store: RecordStore) -> None:
    store.path.write_bytes(record("none").line() + record("ibau").line())
    store.drop([record("ibau").id])


@pytest.mark.parametrize(("change", "aside"), [(_repaired, "damaged"), (_dropped, "superseded")])
def test_a_replaced_store_survives_and_so_does_what_was_moved_aside(
    change: Callable[[RecordStore], None], aside: str, tmp_path: Path, disk: Disk
) -> None:
    store = RecordStore(tmp_path)
    change(store)
    assert _names(tmp_path) == {"records.jsonl", f"records.jsonl.{aside}"}
    assert disk.survives(store.path)
    assert disk.survives(store.path.with_name(f"records.jsonl.{aside}"))
    kept, renamed = _which(store.path.with_name(f"records.jsonl.{aside}").stat()), _which(store.path.stat())
    assert disk.events.index(("file", kept)) < disk.events.index(("renamed", renamed))  # first aside, then out


def test_files_written_at_once_survive(tmp_path: Path, disk: Disk) -> None:
    files.write_atomically(tmp_path / "sweep.json", b"{}")
    assert disk.survives(tmp_path / "sweep.json")
    assert _names(tmp_path) == {"sweep.json"}
    store, picture = RecordStore(tmp_path), "data:image/png;base64,aGVsbG8="
    store.append(record().model_copy(update={"details": {"mask": picture}}))
    (path,) = (tmp_path / "pictures").iterdir()
    assert disk.survives(path)
    assert disk.survives(store.path)


def test_without_a_sync_of_the_folder_the_name_would_be_lost(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle of these tests notices what they are about."""
    monkeypatch.setattr(files, "sync_folder", lambda folder: None)
    files.write_atomically(tmp_path / "sweep.json", b"{}")
    assert not disk.survives(tmp_path / "sweep.json")


@pytest.mark.parametrize(("code", "raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_system_that_syncs_no_folders_is_none_that_fails(
    call: str, code: int, raised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    if raised:
        with pytest.raises(OSError, match=os.strerror(code)):
            files.sync_folder(tmp_path)
    else:
        files.sync_folder(tmp_path)


def test_a_disk_that_fails_at_the_name_leaves_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the line would be written a second time when the disk takes it."""
    store, real = RecordStore(tmp_path), os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        store.append(record("none"))
    monkeypatch.undo()
    store.append(record("none"))
    assert store.path.read_bytes() == record("none").line()
