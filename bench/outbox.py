"""Records on their way to the store: those a full disk refuses wait here, and are never dropped."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path

from bench.records import Record, RecordStore

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Between two attempts to write what waits."""
PATIENCE_SECONDS = 600.0
"""How long a sweep waits for room, starting nothing new, before it gives up."""


class NoRoomError(OSError):
    """Records could not be written to the store; the message says where they are instead."""


class Outbox:
    """What is put in is on disk when ``put`` returns, or waits until the disk takes it (``flush``).

    The order is kept. Whoever has nothing to do for want of room asks ``blocked``; ``exhausted`` says that room did
    not come in time. ``close`` writes what still waits, if need be into another folder.
    """

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._waiting: list[Record] = []
        self._since = self._tried = 0.0
        self._error: OSError | None = None

    @property
    def blocked(self) -> bool:
        return bool(self._waiting)

    @property
    def exhausted(self) -> bool:
        return self.blocked and time.monotonic() - self._since > PATIENCE_SECONDS

    def put(self, record: Record) -> None:
        self._waiting.append(record)
        if len(self._waiting) == 1:
            self._since = time.monotonic()
            self._write()

    def flush(self) -> None:
        """Try again, if the last attempt was a while ago."""
        if self._waiting and time.monotonic() - self._tried >= RETRY_SECONDS:
            self._write()

    def close(self) -> None:
        """Raises ``NoRoomError`` where the store still takes nothing, once the records are in a file elsewhere."""
        self._write()
        if not self._waiting:
            return
        path = self._rescue()
        raise NoRoomError(
            f"{self._store.path}: cannot be written to ({self._why()}); its last {len(self._waiting)} record(s) are in"
            f" {path}: make room, append that file to it, and run the same command again"
        )

    def _write(self) -> None:
        self._tried = time.monotonic()
        while self._waiting:
            try:
                self._store.append(self._waiting[0])
            except OSError as error:
                if self._error is None:
                    logger.warning(
                        "%s cannot be written to (%s): nothing new is started until it can", self._store.path,
                        error.strerror or error,
                    )  # fmt: skip
                self._error = error
                return
            self._waiting.pop(0)
        if self._error is not None:
            logger.warning("%s can be written to again: the sweep goes on", self._store.path)
            self._error = None

    def _why(self) -> str:
        return str(self._error and (self._error.strerror or self._error))

    def _rescue(self) -> Path:
        """All that waits, as lines of JSON in the system's folder for temporary files."""
        handle, name = tempfile.mkstemp(prefix=f"{self._store.folder.name}-records-", suffix=".jsonl")
        with os.fdopen(handle, "wb") as file:
            file.writelines(record.line() for record in self._waiting)
        return Path(name)
