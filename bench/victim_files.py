"""How a victim lies on disk: tensors as safetensors, the rest as JSON, one writer at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from bench.files import write_atomically

logger = logging.getLogger(__name__)

WAIT_LOG_SECONDS = 15.0
"""How long a wait for another process goes on before the log says who is waited for; and between two such lines."""


SEAL = "checksum"


class DamagedVictimError(Exception):
    """The files are there, but are not what was written. Never leaves ``bench.victims``."""


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(tree, indent=1, sort_keys=True).encode())


def read_json(path: Path) -> dict[str, Any]:
    """The tree; raises ``DamagedVictimError`` for a file that is not a JSON object, ``FileNotFoundError`` for none."""
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedVictimError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise DamagedVictimError(f"{path.name} holds no JSON object")
    return tree


def write_sealed(path: Path, tree: Mapping[str, Any]) -> None:
    """As ``write_json``, with a checksum of the tree in it: a flipped bit may leave JSON that says something else."""
    write_json(path, {**tree, SEAL: _seal(tree)})


def read_sealed(path: Path) -> dict[str, Any]:
    """As ``read_json``; raises ``DamagedVictimError`` too where the checksum is another. Files from before there was
    one are taken as they are."""
    tree = read_json(path)
    seal = tree.pop(SEAL, None)
    if seal is not None and seal != _seal(tree):
        raise DamagedVictimError(f"{path.name} is not what was written: its checksum is another")
    return tree


def _seal(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def write_state(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a state dict; returns the SHA-256 of the file."""
    content = save_tensors({name: value.detach().cpu().contiguous().clone() for name, value in state.items()})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read_state(path: Path, sha256: object) -> dict[str, Tensor]:
    """The state dict; raises ``DamagedVictimError`` unless the file has this SHA-256."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DamagedVictimError(f"{path.name} has SHA-256 {found[:12]}…; its metadata says {str(sha256)[:12]}…")
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise DamagedVictimError(f"{path.name} is not a safetensors file: {error}") from error


class Holder:
    """The note beside a lock file of who holds it and how far along they are, for other processes to read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%H:%M:%S")}

    def claim(self) -> None:
        """Write the note; raises ``OSError`` where the disk takes none, before any work is done."""
        self._path.write_text(json.dumps(self._facts))

    def progress(self, epoch: int, epochs: int) -> None:
        """Write the note anew; a disk that takes no more by now is no reason to stop the work."""
        with suppress(OSError):
            self._path.write_text(json.dumps({**self._facts, "epoch": epoch, "epochs": epochs}))

    def forget(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def epochs(lock: Path) -> tuple[int, int] | None:
    """(epochs done, epochs) of the training under the lock file ``lock``, if it goes on and has told of any."""
    note = _note(lock.with_suffix(".holder"))
    done, whole = note.get("epoch"), note.get("epochs")
    return (done, whole) if isinstance(done, int) and isinstance(whole, int) else None


@contextmanager
def locked(path: Path, purpose: str) -> Iterator[Holder]:
    """Hold the lock file ``path``; a wait can be interrupted, and the log says who is waited for.

    The operating system frees the lock of a process that dies, so a holder's note left behind blocks nobody.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(path), path.with_suffix(".holder")
    holder = Holder(note)
    while True:
        try:
            lock.acquire(timeout=WAIT_LOG_SECONDS, poll_interval=0.1)
            break
        except Timeout:
            logger.info("%s: waiting for %s", purpose, _holder(note))
    try:
        holder.claim()
        yield holder
    finally:
        holder.forget()
        lock.release()


def _holder(path: Path) -> str:
    note = _note(path)
    if not note.keys() >= {"pid", "host", "since"}:
        return "another process"
    return f"process {note['pid']} on {note['host']}, which has been at it since {note['since']}"


def _note(path: Path) -> dict[str, Any]:
    """What a holder wrote; empty if there is none or it is cut short."""
    try:
        return read_json(path)
    except (OSError, DamagedVictimError):
        return {}
