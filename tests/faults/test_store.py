"""The results folder: a line cut in the middle, two sweeps at once, a writer killed as it writes, clocks that jump."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny_sweep
from conftest import Note
from stage import HERE, LIMIT, ROOT, WITH_FAULTS, Stage, Union

from bench.records import RecordStore

pytestmark = pytest.mark.timeout(1200)

SLOW = {"name": "fine_tuning", "epochs": 20}


def _stage(folder: Path) -> Stage:
    return Stage(folder, tiny_sweep.tree(grid={"poison_ratio": [0.1, 0.3], "run": list(range(4)), "defense": [SLOW]}))


def test_a_line_cut_in_the_middle(tmp_path: Path, note: Note, chance: random.Random) -> None:
    stage = _stage(tmp_path)
    assert stage.run().status == 0
    content, cuts = stage.store.path.read_bytes(), 3
    seen: list[str] = []
    for _ in range(cuts):
        lines = content.splitlines(keepends=True)
        kept = chance.randrange(1, len(lines) - 1)
        cut = b"".join(lines[:kept]) + lines[kept][: chance.randrange(1, len(lines[kept]) - 2)]
        stage.store.path.write_bytes(cut)
        ended = stage.run()
        assert ended.status == 0, ended
        assert stage.lines()[:kept] == [line.rstrip(b"\n") for line in lines[:kept]]
        union = stage.union()
        assert (union.lost, union.doubled) == (0, 0)
        seen = [line for line in stage.shorten(ended.error) if "damaged" in line] + stage.shorten(ended.out)[:2]
    note(
        "records.jsonl cut in the middle of a line",
        "The file of records is cut at a random byte of a line, and what came after it is gone.", stage, seen,
        "The same command: what the cut took is computed again, the rest of the line is kept in"
        " `records.jsonl.damaged`.",
        injected=cuts, others=stage.union().statuses["ok"],
    )  # fmt: skip


def test_two_sweeps_on_one_folder(tmp_path: Path, note: Note) -> None:
    grid = {"poison_ratio": [0.1, 0.3], "run": [0, 1], "defense": [SLOW, {"name": "waits"}]}
    stage, go = Stage(tmp_path, tiny_sweep.tree(grid=grid), WITH_FAULTS), tmp_path / "go"
    stage.environment |= {"IBAU_BENCH_WAIT_FOR": str(go)}
    first = stage.start()
    assert first.until(lambda: len(stage.lines()) >= 1), first.error()
    other = Stage(tmp_path / "other", stage.tree, WITH_FAULTS)
    other.out, other.cache = stage.out, stage.cache
    second = other.run()
    assert first.process.poll() is None, "it waits for the file"
    go.touch()
    ended = first.wait()
    assert (ended.status, second.status) == (0, 2), (ended, second)
    assert second.error.count("\n") == 1
    assert "another sweep is writing" in second.error
    note(
        "two sweeps on one folder", "A second sweep is started on the results folder of one that runs.", stage,
        [*stage.shorten(second.error), f"exit status {second.status}"],
        "The first goes on undisturbed.", others=stage.union().statuses["ok"],
    )  # fmt: skip


def test_a_writer_killed_while_it_writes(tmp_path: Path, note: Note, chance: random.Random) -> None:
    """Nothing but the store, and no pause between two records: most kills hit the middle of a write."""
    store, kills, told = RecordStore(tmp_path / "store"), 40, 0
    log = tmp_path / "log"
    for _ in range(kills):
        with log.open("wb") as file:
            paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
            process = subprocess.Popen(
                [sys.executable, str(HERE / "writer.py"), str(store.folder)], stdout=file,
                env={**os.environ, "PYTHONPATH": paths},
            )  # fmt: skip
        while not log.stat().st_size and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        assert process.poll() is None
        process.kill()
        process.wait(60)
        told += len(log.read_bytes().split(b"\n")) - 1  # the writer says so once a record is on the disk
        store.repair()
    records = store.read()
    found = Counter(record.cell.seed for record in records)
    lines = store.path.read_bytes().splitlines()
    assert sorted(found) == list(range(len(records))), "a record was lost"
    assert len(records) >= told
    note(
        "writer killed while it writes",
        "SIGKILL of a process that does nothing but write records, at random moments of its writing.",
        _stage(tmp_path / "unused"), [f"{told} records were acknowledged, {len(records)} are there"],
        "The next writer mends the end of the file and goes on.", injected=kills,
        union=Union(max(told, len(records)), max(0, told - len(records)), len(lines) - len(records), {}),
    )  # fmt: skip


CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
static volatile long *offset;
static long seconds(void) {
    if (!offset) {
        int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
        offset = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    }
    return *offset;
}
static int is_python(void *caller) {
    Dl_info found;
    if (!dladdr(caller, &found) || !found.dli_fname) return 0;
    const char *name = strrchr(found.dli_fname, '/');
    name = name ? name + 1 : found.dli_fname;
    return !strncmp(name, "python", 6) || !strncmp(name, "libpython", 9);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME && is_python(__builtin_return_address(0))) now->tv_sec += seconds();
    return failed;
}
"""
DAY = 86_400


@pytest.fixture
def clock(tmp_path: Path) -> tuple[Path, Path]:
    """A library that shifts the wall clock as Python sees it in processes that load it, and the file with the seconds.

    Only as Python sees it: native code also waits for points in time, by the kernel's clock, which stays as it is.
    """
    source, library, offset = tmp_path / "clock.c", tmp_path / "clock.so", tmp_path / "offset"
    source.write_text(CLOCK)
    offset.write_bytes((0).to_bytes(8, sys.byteorder, signed=True))
    try:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler to build a clock that jumps: {error}")
    return library, offset


def test_clocks_that_jump(tmp_path: Path, clock: tuple[Path, Path], note: Note, chance: random.Random) -> None:
    library, offset = clock
    stage = _stage(tmp_path)
    stage.environment |= {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
    running, jumps = stage.start(), 0
    end = time.monotonic() + LIMIT
    while running.process.poll() is None:
        assert time.monotonic() < end, f"it did not end:\n{running.error()}\n{running.printed()}"
        shift = chance.choice([-3650, -1, 1, 400]) * DAY + chance.randint(-DAY, DAY)
        with offset.open("r+b") as file:
            file.write(shift.to_bytes(8, sys.byteorder, signed=True))
        jumps += 1
        running.until(lambda: False, 1.0)
    ended = running.wait()
    assert ended.status == 0, ended
    records = list(stage.records().values())
    assert {record.status for record in records} == {"ok"}
    assert len({str(record.provenance and record.provenance.started)[:10] for record in records}) > 1, (
        "no jump was seen"
    )
    assert all(record.seconds is not None and 0 <= record.seconds < 600 for record in records)
    page = stage.out / "tiny" / "report.html"
    os.utime(page, (time.time() + DAY, time.time() + DAY))  # written before the clock was set back
    stage.environment.clear()
    os.truncate(stage.store.path, len(b"\n".join(stage.lines()[:-1])) + 1)
    assert stage.run().status == 0
    assert stage.lines()[-1].split(b'"id":"')[1][:16].decode() in page.read_text()
    assert page.stat().st_mtime < time.time() + 60
    note(
        "clock jumps",
        "The wall clock that the Python code of driver and workers sees, Ray's included, jumps by days and years, once"
        " a second, and a report comes from the future.",
        stage, [line for line in stage.shorten(ended.out) if "cells in" in line],
        "Nothing: seconds are counted by clocks that only go forward, and the report is written again.",
        injected=jumps, others=len(records),
    )  # fmt: skip
