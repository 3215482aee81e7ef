"""The store: one JSON object a line, one line a cell, appended as cells finish and never rewritten.

A line is written at once and synced, under a lock, so that a crash can cut at most the last one; that one is moved
aside when the store is next opened for writing, and every other stays. A file that is new or replaced has its folder
synced too, so that a power cut does not take its name.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from adapters.errors import UserError
from bench import pictures
from bench.cells import SCHEMA_VERSION, Cell
from bench.files import make_folder, sync_folder

logger = logging.getLogger(__name__)

SPLIT_VERSION = 1
"""Version of the rule that splits test images (``bench.splits``): figures under different ones are not comparable."""

FILE = "records.jsonl"
Status = Literal["ok", "no_trigger_detected", "attack_failed", "diverged", "timeout", "failed"]
Interval = tuple[float, float]
"""95 % interval, both ends in [0, 1]."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class TriggerScores(_Row):
    """One trigger's own figures: ``asr`` and ``ra`` over ``count`` scoring images."""

    trigger: str
    target: int | Literal["all_to_all"]
    asr: float
    ra: float
    count: int


class TriggerFigures(TriggerScores):
    """A trigger on the victim, and how visible it is (``adapters.attacks.visibility``): means over scoring images.

    ``psnr`` in dB, null where nothing changes. ``digest``: SHA-256 of an optimised trigger; null for others.
    """

    l0: float
    l2: float
    linf: float
    psnr: float | None
    ssim: float
    digest: str | None = None


class VictimFigures(_Row):
    """The poisoned model before any defense. ``seconds``: its training; null for one from a checkpoint.

    In older records that is 0. ``asr`` and ``ra`` are null for a clean model.
    """

    id: str
    acc: float
    asr: float | None
    ra: float | None
    seconds: float | None = None
    triggers: tuple[TriggerFigures, ...] = ()
    """Each trigger by itself; empty in records written before there were figures of them."""


class Passes(_Row):
    """Images that went forward and backward through the network during the defense."""

    forward: int
    backward: int


class Tsne(_Row):
    """Penultimate features of N scoring images, each before and after the defense laid out by t-SNE (``bench.tsne``).

    ``labels`` are the true ones; ``triggered``: 0 a clean image, k one with the k-th trigger. ``before`` and
    ``after``: N points (x, y). ``restored_before``, ``restored_after``: the share of triggered images whose nearest
    clean images, in the features themselves, are mostly of their own class; null where none is triggered.
    """

    labels: tuple[int, ...]
    triggered: tuple[int, ...]
    before: tuple[tuple[float, float], ...]
    after: tuple[tuple[float, float], ...]
    restored_before: float | None
    restored_after: float | None


class Origin(_Row):
    """The code and the machine that figures come from."""

    commit: str | None
    dirty: bool | None
    """Whether the checkout had changes beside that commit."""
    python: str
    torch: str
    package: str
    device: str
    threads: int


class Provenance(Origin):
    """Where a record comes from. Nothing of it enters the cell's id."""

    cells_beside: int = 0
    """The largest number of other jobs that ran on the same GPU, or without one on the same machine, at any time during
    this one; in older records, on the same cluster."""
    started: str
    """UTC, ISO 8601."""


class Record(_Row):
    """What became of one cell. A cell that was not scored has null figures."""

    schema_version: int = Field(default=SCHEMA_VERSION, validation_alias="schema", serialization_alias="schema")
    id: str
    cell: Cell
    status: Status
    reason: str | None = None
    victim: VictimFigures | None = None
    acc: float | None = None
    acc_interval: Interval | None = None
    asr: float | None = None
    asr_interval: Interval | None = None
    ra: float | None = None
    ra_interval: Interval | None = None
    triggers: tuple[TriggerScores, ...] = ()
    """ASR and RA of each trigger after the defense; ``asr`` and ``ra`` are their means."""
    der: float | None = None
    der_interval: Interval | None = None
    error_gap: float | None = None
    error_gap_interval: Interval | None = None
    evasion_accuracy: float | None = None
    evasion_accuracy_interval: Interval | None = None
    tsne: Tsne | None = None
    seconds: float | None = None
    seconds_to_effect: float | None = None
    peak_memory_bytes: int | None = None
    passes: Passes | None = None
    rounds: tuple[dict[str, Any], ...] = ()
    details: dict[str, Any] = {}
    """What the defense itself found: detected classes, recovered triggers, ε (``docs/defenses.md``)."""
    provenance: Provenance | None = None
    split: int = SPLIT_VERSION
    """Version of the rule that split the test images; the first in records written before they said so."""
    data: str | None = None
    """What the data set held (``bench.data_identity``); null where it was not loaded, or written before it was told."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_first_split(cls, tree: Any, info: ValidationInfo) -> Any:
        return {"split": 1} | tree if info.mode == "json" and isinstance(tree, dict) else tree

    def line(self) -> bytes:
        """The record as one line of JSON. A NaN or an infinity among a round's diagnostics becomes null."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"


def jsonable(value: Any) -> Any:
    """``value`` as plain JSON: numbers of numpy or torch as Python's, NaN and infinities as null, the rest as text.

    A lone surrogate in a text (what ``os.fsdecode`` makes of a stray byte), which cannot be read back, becomes ``?``.
    """
    if isinstance(value, Mapping):
        return {_encodable(str(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, str):
        return _encodable(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return _encodable(str(value))


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def first_fault(error: ValidationError) -> str:
    """The key, where there is one, and what is wrong with it."""
    fault = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))


class Objects(NamedTuple):
    """The intact lines of a file of records as JSON, and how many others there were."""

    trees: list[dict[str, Any]]
    damaged: int


class Mirrored(Protocol):
    """Where records are sent once they are in the file (``bench.mirror``); raises ``OSError`` where it takes none."""

    @property
    def address(self) -> str: ...

    def send(self, record: Record) -> None: ...


class RecordStore:
    """The records of one results folder. Whoever appends sends them to ``mirror`` too (``bench.outbox``)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mirror: Mirrored | None = None
        self.path = folder / FILE
        self._lock = FileLock(str(folder / f".{FILE}.lock"))

    def read(self, *, repair: bool = False) -> list[Record]:
        """Every intact record, each id once (the latest); every line is parsed once.

        A damaged line is skipped with a warning; with ``repair`` it is moved aside, otherwise nothing is written.
        Raises ``UserError`` for a record of another schema version, or one that is no record of ours.
        """
        found = [self._parse(line, number) for number, line in self._numbered()]
        intact = {record.id: record for record in found if record is not None}
        damaged = found.count(None)
        if damaged and repair:
            self.repair()
        elif damaged:
            logger.warning("%s: %d damaged line(s) skipped", self.path, damaged)
        return list(intact.values())

    def objects(self) -> Objects:
        """Every intact line's JSON object in the order written, whatever stands in it: for readers that forgive.

        Raises ``UserError`` if the file cannot be read; one that does not exist holds nothing.
        """
        intact, damaged = self._lines()
        return Objects([json.loads(line) for _, line in intact], len(damaged))

    def append(self, record: Record) -> None:
        """Add ``record``; when this returns it is on disk, and the pictures in its details are files beside it."""
        if record.id != record.cell.id:
            raise ValueError(f"record {record.id} is not of its cell {record.cell.id}")
        line = record.model_copy(update={"details": pictures.keep(record.details, self.folder)}).line()
        make_folder(self.folder)
        with self._lock:
            self._mend()
            _write(self.path, line)

    def extend(self, records: Sequence[Record]) -> None:
        """Add ``records`` of another folder, whose pictures are beside these already: all at once, synced."""
        if records:
            make_folder(self.folder)
            with self._lock:
                self._mend()
                _write(self.path, b"".join(record.line() for record in records))

    def repair(self) -> int:
        """Move damaged lines to ``records.jsonl.damaged``; returns how many there were."""
        if not self.path.exists():
            return 0
        with self._lock:
            intact, damaged = self._lines()
            if damaged:
                logger.warning("%s: %d damaged line(s) moved to %s.damaged", self.path, len(damaged), FILE)
                _write(self.path.with_name(f"{FILE}.damaged"), b"".join(line + b"\n" for _, line in damaged))
                self._replace(line for _, line in intact)
            else:
                self._mend()
            return len(damaged)

    def drop(self, ids: Iterable[str]) -> None:
        """Take the records of ``ids`` out, into ``records.jsonl.superseded``: their cells are to be run again."""
        gone = set(ids)
        with self._lock:
            intact, _ = self._lines()
            kept: list[bytes] = []
            dropped: list[bytes] = []
            for number, line in intact:
                record = self._parse(line, number)
                (dropped if record is not None and record.id in gone else kept).append(line)
            _write(self.path.with_name(f"{FILE}.superseded"), b"".join(line + b"\n" for line in dropped))
            self._replace(kept)

    def _lines(self) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
        """Numbered lines that hold a JSON object, and those that do not (cut, or overwritten by garbage)."""
        intact: list[tuple[int, bytes]] = []
        damaged: list[tuple[int, bytes]] = []
        for number, line in self._numbered():
            (intact if _is_object(line) else damaged).append((number, line))
        return intact, damaged

    def _numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines in which something stands, numbered from 1; none where there is no file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error}); expected a file of records") from error
        for number, line in enumerate(content.split(b"\n"), start=1):
            if line.strip():
                yield number, line

    def _parse(self, line: bytes, number: int) -> Record | None:
        """The record of a line; None if the line is damaged."""
        where = f"{self.path} line {number}"
        try:
            record = Record.model_validate_json(line)
        except ValidationError as error:
            if not _is_object(line):
                return None
            _check_version(json.loads(line).get("schema"), where)
            raise UserError(f"{where}: {first_fault(error)}; expected a record of this program") from error
        told = "schema_version" in record.model_fields_set
        _check_version(record.schema_version if told else None, where)
        return record

    def _mend(self) -> None:
        """End the file with a newline, lest a line be glued to one that a crash cut."""
        try:
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
        except (FileNotFoundError, OSError):  # none yet, or empty
            return
        if last != b"\n":
            _write(self.path, b"\n")

    def _replace(self, lines: Iterable[bytes]) -> None:
        temporary = self.path.with_name(f".{FILE}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        _write(temporary, b"".join(line + b"\n" for line in lines))
        os.replace(temporary, self.path)
        sync_folder(self.folder)


def _check_version(version: object, where: str) -> None:
    if version != SCHEMA_VERSION:
        raise UserError(f"{where}: schema {version!r}; expected {SCHEMA_VERSION}, or a new --out folder")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _write(path: Path, content: bytes) -> None:
    """Append ``content`` and sync it; on a full disk leave the file as it was, and raise."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
            if size == 0:  # its name may be new
                sync_folder(path.parent)
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)
