"""A tiny sweep to inject faults into: its folders, its command, and what is left in its store."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import tiny_sweep

from bench import spec
from bench.cells import Cell
from bench.records import Record, RecordStore

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PLAIN = ("-m", "bench.sweep")
WITH_FAULTS = (str(HERE / "drive.py"),)
LIMIT = 500.0
"""Seconds after which a sweep that does not end is a failure of the suite."""


class Ended(NamedTuple):
    """A command that ended: its exit status (negative: the signal) and what it printed."""

    status: int
    out: str
    error: str


class Union(NamedTuple):
    """What the store holds against what the plan says: ``lost`` and ``doubled`` count records."""

    expected: int
    lost: int
    doubled: int
    statuses: dict[str, int]


@dataclass
class Stage:
    """One sweep file in ``root``. ``command``: the sweep's, or the one whose workers know faulty defenses."""

    root: Path
    tree: dict[str, Any]
    command: Sequence[str] = PLAIN
    out: Path = field(init=False)
    cache: Path = field(init=False)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out, self.cache = self.root / "runs", self.root / "cache"
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / "data").exists():
            tiny_sweep.write_images(self.root / "data")
        tiny_sweep.write(self.root, self.tree)

    @property
    def store(self) -> RecordStore:
        return RecordStore(self.out / "tiny")

    def cells(self) -> tuple[Cell, ...]:
        return spec.load(self.root / "tiny.yaml", (), self.root / "data").cells

    def arguments(self) -> list[str]:
        folders = {"--data-root": self.root / "data", "--out": self.out, "--cache": self.cache}
        return [str(self.root / "tiny.yaml"), *(str(part) for item in folders.items() for part in item)]

    def start(self, *more: str) -> Running:
        paths = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HOME": str(self.root),
            **self.environment,
        }  # fmt: skip
        files = [(self.root / name).open("w+b") for name in ("out.txt", "error.txt")]
        command = [sys.executable, *self.command, *self.arguments(), *more]
        process = subprocess.Popen(command, stdout=files[0], stderr=files[1], env=environment, cwd=self.root)
        for file in files:
            file.close()
        return Running(process, self)

    def run(self, *more: str) -> Ended:
        """The command, to its end."""
        return self.start(*more).wait()

    def lines(self) -> list[bytes]:
        """The whole lines of the store, as they stand."""
        try:
            content = self.store.path.read_bytes()
        except FileNotFoundError:
            return []
        return [line for line in content.split(b"\n")[:-1] if _is_record(line)]

    def records(self) -> dict[str, Record]:
        return {record.id: record for record in self.store.read()}

    def union(self) -> Union:
        expected = {cell.id for cell in self.cells()}
        found = Counter(json.loads(line)["id"] for line in self.lines())
        doubled = sum(count - 1 for count in found.values())
        statuses = Counter(record.status for name, record in self.records().items() if name in expected)
        return Union(len(expected), len(expected - found.keys()), doubled, dict(statuses))

    def shorten(self, text: str) -> list[str]:
        """The lines of ``text`` that are not empty, with this test's own paths as names."""
        for path, name in ((self.out, "OUT"), (self.cache, "CACHE"), (self.root / "data", "DATA"), (self.root, "HERE")):
            text = text.replace(str(path), name)
        return [line.rstrip()[:300] for line in text.splitlines() if line.strip()]


@dataclass
class Running:
    """The command, running."""

    process: subprocess.Popen[bytes]
    stage: Stage

    def wait(self) -> Ended:
        """Its end; a command that does not end is killed, and fails the test."""
        try:
            status = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it did not end:\n{self.error()}\n{self.printed()}") from None
        return Ended(status, self.printed(), self.error())

    def printed(self) -> str:
        return (self.stage.root / "out.txt").read_text(errors="replace")

    def error(self) -> str:
        return (self.stage.root / "error.txt").read_text(errors="replace")

    def until(self, condition: Callable[[], bool], seconds: float = LIMIT) -> bool:
        """Wait until ``condition``, or the command's end; whether it came true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            if self.process.poll() is not None:
                return condition()
            time.sleep(0.02)
        return False

    def descendants(self, pattern: str) -> list[int]:
        """The processes below this one whose command line matches."""
        parents = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    stat = (folder / "stat").read_text()
                    parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
                except (OSError, ValueError, IndexError):
                    continue
        return sorted(one for one in parents if self._is_below(one, parents) and re.search(pattern, command_line(one)))

    def _is_below(self, one: int, parents: dict[int, int]) -> bool:
        while one in parents:
            one = parents[one]
            if one == self.process.pid:
                return True
        return False

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)


def is_alive(process: int) -> bool:
    """Whether it still runs; a zombie, which only waits for its parent to ask after it, does not."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def command_line(process: int) -> str:
    try:
        return (Path("/proc") / str(process) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
