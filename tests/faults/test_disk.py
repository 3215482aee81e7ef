"""A disk that is full: under the records, under the cache, for a while and for good; and a cache that is read-only."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_sweep
from conftest import Note
from stage import WITH_FAULTS, Stage

pytestmark = pytest.mark.timeout(1200)

TUNING = {"name": "fine_tuning", "epochs": 20}


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, str], None]]:
    """Mounts a file system of its own; skips with the reason where that is not allowed."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        folder.mkdir(parents=True)
        _mount(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)])
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def _mount(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a file system of a size of its own: {getattr(error, 'stderr', '') or error}")


def _stage(folder: Path) -> Stage:
    tree = tiny_sweep.tree(grid={"poison_ratio": [0.1, 0.3], "run": list(range(8)), "defense": [TUNING]})
    return Stage(folder, tree, WITH_FAULTS)


def _fill(folder: Path) -> Path:
    """A file that takes all that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (4096, 512, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return path


def test_full_for_a_while(tmp_path: Path, small_disk: Callable[[Path, str], None], note: Note) -> None:
    stage = _stage(tmp_path)
    small_disk(stage.out, "16m")
    running = stage.start()
    assert running.until(lambda: len(stage.lines()) >= 3), running.error()
    before, filler = stage.lines(), _fill(stage.out)
    assert running.until(lambda: "nothing new is started" in running.error()), running.error()
    running.until(lambda: False, 3.0)
    assert running.process.poll() is None
    assert len(stage.lines()) < stage.union().expected
    filler.unlink()
    ended = running.wait()
    assert ended.status == 0, ended
    assert stage.lines()[: len(before)] == before
    note(
        "disk of the records full for a while",
        "The file system of the results is filled to the last byte during the sweep, and emptied seconds later.", stage,
        [line for line in stage.shorten(ended.error) if "written" in line],
        "The sweep waits, starts nothing new meanwhile, and goes on by itself.", others=stage.union().statuses["ok"],
    )  # fmt: skip


def test_full_for_good(tmp_path: Path, small_disk: Callable[[Path, str], None], note: Note) -> None:
    stage = _stage(tmp_path)
    stage.environment |= {"FAULTS_PATIENCE": "3", "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    small_disk(stage.out, "16m")
    running = stage.start()
    assert running.until(lambda: len(stage.lines()) >= 3), running.error()
    before, filler = stage.lines(), _fill(stage.out)
    ended = running.wait()
    assert ended.status == 3, ended
    assert stage.lines()[: len(before)] == before
    rescued = list(tmp_path.glob("tiny-records-*.jsonl"))  # none if a page came free for the last records
    assert len(rescued) == ("append that file" in ended.error)
    filler.unlink()
    stage.store.repair()
    with stage.store.path.open("ab") as file:
        file.writelines(one.read_bytes() for one in rescued)
    again = stage.run()
    assert again.status == 0, again
    note(
        "disk of the records full for good",
        "The file system of the results is filled to the last byte during the sweep, and stays so.", stage,
        [*(line for line in stage.shorten(ended.error) if "written" in line), "exit status 3"],
        "Room was made, the file that the message named, if any, appended and the same command run again.",
        others=stage.union().statuses["ok"],
    )  # fmt: skip


def test_a_full_cache(tmp_path: Path, small_disk: Callable[[Path, str], None], note: Note) -> None:
    stage = _stage(tmp_path)
    small_disk(stage.cache, "16m")
    first = ("--set", "grid.poison_ratio=[0.1]", "--set", "grid.run=[0]", "--out", str(tmp_path / "before"))
    assert stage.run(*first).status == 0  # leaves the images and one of two victims
    filler = _fill(stage.cache)
    ended = stage.run()
    failed = [record for record in stage.records().values() if record.status == "failed"]
    assert ended.status == 1, ended
    assert {record.cell.poison_ratio for record in failed} == {0.3}
    others = stage.union().statuses["ok"]
    assert others == len(failed) == stage.union().expected // 2
    assert all("No space left on device" in str(record.reason) for record in failed)
    filler.unlink()
    again = stage.run("--retry-failed")
    assert again.status == 0, again
    note(
        "disk of the cache full", "The file system of the cache holds one of two victims, and has no room for the"
        " other.", stage, [f"status failed, reason: {failed[0].reason}", *stage.shorten(ended.out)[-3:-2]],
        "Room was made, and the command run again with `--retry-failed`.", others=others,
    )  # fmt: skip


def test_a_read_only_cache(tmp_path: Path, note: Note) -> None:
    stage = _stage(tmp_path)
    stage.cache.mkdir(parents=True)
    _mount(["mount", "--bind", str(stage.cache), str(stage.cache)])
    try:
        assert stage.run("--dry-run").status == 0
        _mount(["mount", "-o", "remount,ro,bind", str(stage.cache)])
        lacking = stage.run()
        assert lacking.status == 2, lacking
        assert lacking.error.count("\n") == 1
        assert "--cache: cannot write to" in lacking.error
        _mount(["mount", "-o", "remount,rw,bind", str(stage.cache)])
        assert stage.run().status == 0
        first = stage.lines()
        stage.store.path.unlink()
        _mount(["mount", "-o", "remount,ro,bind", str(stage.cache)])
        full = stage.run()
    finally:
        subprocess.run(["umount", "--lazy", str(stage.cache)], check=False, capture_output=True)
    assert full.status == 0, full
    assert len(stage.lines()) == len(first)
    assert {record.status for record in stage.records().values()} == {"ok"}
    note(
        "read-only cache", "The cache is mounted read-only: once without the victims, once with all of them.", stage,
        [*stage.shorten(lacking.error), *stage.shorten(full.out)[:2]],
        "Without the victims nothing is computed; with them the sweep runs as ever.", injected=2,
        others=stage.union().statuses["ok"],
    )  # fmt: skip
