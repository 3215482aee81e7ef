"""Records on their way to the store, and on to its mirror: those that find no room wait, and are never dropped."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.records import Record, RecordStore

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Between two attempts to write what waits."""
PATIENCE_SECONDS = 600.0
"""How long a sweep waits for room, starting nothing new, before it gives up."""


class NoRoomError(OSError):
    """Records could not be written to the store, or to its mirror; the message says where they are instead."""


class Outbox:
    """What is put in is on disk when ``put`` returns, or waits until the disk takes it (``flush``).

    Where the store has a mirror, a record is sent there once it is on disk, or waits in the same way. The order is
    kept. Whoever has nothing to do for want of room asks ``blocked``; ``exhausted`` says that room did not come in
    time. ``close`` writes what still waits, if need be into another folder.
    """

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        mirror = store.mirror
        self._mirror = _Queue(mirror.send, mirror.address) if mirror else None
        self._disk = _Queue(self._append, str(store.path))
        self._queues = [self._disk, self._mirror] if self._mirror else [self._disk]

    @property
    def blocked(self) -> bool:
        return any(queue.waiting for queue in self._queues)

    @property
    def exhausted(self) -> bool:
        return any(queue.exhausted for queue in self._queues)

    def put(self, record: Record) -> None:
        self._disk.put(record)

    def flush(self) -> None:
        """Try again, if the last attempt was a while ago."""
        for queue in self._queues:
            queue.flush()

    def close(self) -> None:
        """Raises ``NoRoomError`` where the store still takes nothing, once the records are in a file elsewhere; where
        the mirror does not, which the next sweep makes up for; and where room for the last records came after
        ``exhausted`` had been told, when cells may be left."""
        for queue in self._queues:
            queue.write()
        if self._disk.waiting:
            path = self._rescue()
            raise NoRoomError(
                f"{self._disk.place}: cannot be written to ({self._disk.why}); its last {len(self._disk.waiting)}"
                f" record(s) are in {path}: make room, append that file to it, and run the same command again"
            )
        if self._mirror and self._mirror.waiting:
            raise NoRoomError(
                f"{self._mirror.place}: cannot be written to ({self._mirror.why}); its last"
                f" {len(self._mirror.waiting)} record(s) are in {self._store.path}, with all others: the same command"
                " sends them from there"
            )
        for queue in self._queues:
            if queue.gave_up:
                raise NoRoomError(
                    f"{queue.place}: could not be written to for more than {PATIENCE_SECONDS:g} s; every record is in"
                    " it now, but cells may be left: make room, and run the same command again"
                )

    def _append(self, record: Record) -> None:
        self._store.append(record)
        if self._mirror:
            self._mirror.put(record)

    def _rescue(self) -> Path:
        """All that waits, as lines of JSON in the system's folder for temporary files."""
        handle, name = tempfile.mkstemp(prefix=f"{self._store.folder.name}-records-", suffix=".jsonl")
        with os.fdopen(handle, "wb") as file:
            file.writelines(record.line() for record in self._disk.waiting)
        return Path(name)


class _Queue:
    """Records in order on their way to one ``place``, which ``take`` raises ``OSError`` for while it takes none."""

    def __init__(self, take: Callable[[Record], None], place: str) -> None:
        self._take, self.place = take, place
        self.waiting: list[Record] = []
        self._since = self._tried = 0.0
        self._error: OSError | None = None
        self.gave_up = False
        """Whether ``exhausted`` has ever been true."""

    @property
    def exhausted(self) -> bool:
        self.gave_up |= bool(self.waiting) and time.monotonic() - self._since > PATIENCE_SECONDS
        return self.gave_up

    @property
    def why(self) -> str:
        return str(self._error and (self._error.strerror or self._error))

    def put(self, record: Record) -> None:
        self.waiting.append(record)
        if len(self.waiting) == 1:
            self._since = time.monotonic()
            self.write()

    def flush(self) -> None:
        if self.waiting and time.monotonic() - self._tried >= RETRY_SECONDS:
            self.write()

    def write(self) -> None:
        self._tried = time.monotonic()
        while self.waiting:
            try:
                self._take(self.waiting[0])
            except OSError as error:
                if self._error is None:
                    logger.warning(
                        "%s cannot be written to (%s): nothing new is started until it can", self.place,
                        error.strerror or error,
                    )  # fmt: skip
                self._error = error
                return
            self.waiting.pop(0)
        if self._error is not None:
            logger.warning("%s can be written to again: the sweep goes on", self.place)
            self._error = None
