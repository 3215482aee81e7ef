"""``Mirror``: a results folder and its copy on a remote path, which several machines may add to.

Each record is an object of its own there, ``records/ID.json``, written once it is in the local file: nothing is
appended and nothing locked, writing one again changes nothing, and what several machines sent is a union. Of two
records of one cell the one that did not fail counts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from adapters.errors import UserError
from bench import ledger, manifest, pictures
from bench.files import make_folder, write_atomically
from bench.records import FILE, Record, RecordStore
from bench.remote import Remote

logger = logging.getLogger(__name__)

OBJECTS = "records"
_OBJECT = re.compile(r"([0-9a-f]{8,64})\.json")
_PICTURE = re.compile(r"[0-9a-f]{16}\.png")
REPORT = ("report.html", "report.md", "report.tex", "tables.csv", "records.csv")


class Mirror:
    """Raises ``RemoteError`` wherever the remote cannot be reached; the local folder is then as good as before."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.remote, self._folder = remote, folder
        self._pictures: set[str] = set()
        """Known to be there."""
        self._failed: set[str] = set()
        """Cells of which the remote, when last pulled, had only a failure."""

    @property
    def address(self) -> str:
        return self.remote.address

    def pull(self, store: RecordStore) -> int:
        """Bring what the remote has and ``store`` lacks; returns how many records that were.

        Objects are read but for those of cells that the remote's ``records.jsonl`` has a success of.
        """
        make_folder(self._folder)
        known = {record.id: record for record in store.read(repair=True)}
        names = self.remote.names(OBJECTS)
        before = dict(known)
        listed = list(self._records((self.remote.read(FILE) or b"").splitlines()))
        settled = {record.id for record in listed if record.status != "failed"}
        wanted = [name for name in sorted(names) if _is_wanted(name, settled)]
        objects = list(self._records(self.remote.read_all(f"{OBJECTS}/{name}" for name in wanted)))
        for record in (*listed, *objects):
            _take(known, record)
        self._failed = {record.id for record in objects if record.status == "failed"}
        new = [record for name, record in known.items() if before.get(name) is not record]
        self._pull_pictures()
        store.extend(new)
        self._pull_manifest()
        return len(new)

    def catch_up(self, store: RecordStore) -> int:
        """Send the records of ``store`` that the remote lacks, from a run that could not; returns how many.

        After a ``pull`` also those that did not fail, where the remote has a failure.
        """
        there = self.remote.names(OBJECTS)
        lacking = [
            record
            for record in store.read()
            if _name(record) not in there or (record.id in self._failed and record.status != "failed")
        ]
        for record in lacking:
            self.send(record)
        return len(lacking)

    def send(self, record: Record) -> None:
        """Put ``record``, after the pictures it names."""
        stored = record.model_copy(update={"details": pictures.keep(record.details, self._folder)})
        for name in pictures.names(stored.details):
            path = self._folder / pictures.FOLDER / name
            if name not in self._pictures and path.is_file():
                self.remote.write(f"{pictures.FOLDER}/{name}", path.read_bytes())
                self._pictures.add(name)
        self.remote.write(f"{OBJECTS}/{_name(record)}", stored.line())
        self._failed.discard(record.id)

    def push(self) -> None:
        """Put ``records.jsonl``, ``sweep.json``, ``ledger.json`` and the report; what another machine put goes."""
        plots = (f"plots/{path.name}" for path in sorted((self._folder / "plots").glob("*")))
        for name in (FILE, manifest.FILE, ledger.FILE, *REPORT, *plots):
            path = self._folder / name
            if path.is_file():
                self.remote.write(name, path.read_bytes())

    def push_manifest(self) -> None:
        """Put ``sweep.json`` alone: what is to come."""
        self.remote.write(manifest.FILE, (self._folder / manifest.FILE).read_bytes())

    def _records(self, lines: Iterable[bytes]) -> Iterator[Record]:
        """The records among ``lines``; whatever else stands there is told of and skipped."""
        for line in lines:
            try:
                record = Record.model_validate_json(line)
            except ValidationError:
                logger.warning("%s: something that is no record of this version is skipped", self.address)
                continue
            if record.id == record.cell.id:
                yield record

    def _pull_pictures(self) -> None:
        folder = self._folder / pictures.FOLDER
        self._pictures = {name for name in self.remote.names(pictures.FOLDER) if _PICTURE.fullmatch(name)}
        for name in sorted(self._pictures):
            content = None if (folder / name).exists() else self.remote.read(f"{pictures.FOLDER}/{name}")
            if content is not None:
                make_folder(folder)
                write_atomically(folder / name, content)

    def _pull_manifest(self) -> None:
        """The parts of both."""
        content = self.remote.read(manifest.FILE)
        if content is None:
            return
        try:
            there = manifest.Manifest.model_validate_json(content)
        except ValidationError as error:
            raise UserError(
                f"{self.address}/{manifest.FILE}: {error.errors(include_url=False)[0]['msg']};"
                " expected what bench.sweep wrote, or no such file"
            ) from error
        manifest.merge(there, self._folder)


def _name(record: Record) -> str:
    return f"{record.id}.json"


def _is_wanted(name: str, settled: set[str]) -> bool:
    """Whether the object is a record's, and of none of the cells ``settled``."""
    match = _OBJECT.fullmatch(name)
    return match is not None and match[1] not in settled


def _take(known: dict[str, Record], record: Record) -> None:
    old = known.get(record.id)
    if old is None or (old.status == "failed" and record.status != "failed"):
        known[record.id] = record
