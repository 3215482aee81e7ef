"""Files: where those a sweep names are looked for and how a record writes them down; written so that they stay."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import UserError

_CANNOT_SYNC = (
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM,
)  # fmt: skip
"""What systems and file systems say that sync no folders."""


def find(name: str, key: str, folders: Sequence[Path]) -> Path:
    """The absolute path of the file ``name``: as given, else under the first of ``folders`` that has it.

    Raises ``UserError`` naming ``key`` and every place looked at.
    """
    try:
        given = Path(name).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{key}: found {name!r}; expected a path without an unknown user's home") from error
    looked = [given.absolute()]
    if not given.is_absolute():
        looked += [(folder / name).absolute() for folder in folders]
    for path in looked:
        if _is_file(path):
            return path.resolve()
    places = ", ".join(dict.fromkeys(str(path) for path in looked))
    raise UserError(f"{key}: found no file {name!r}; looked at: {places}")


def portable(path: str, folders: Sequence[Path]) -> str:
    """``path`` as a record shows it: relative to the first of ``folders`` that holds it, else its bare name.

    A record then says nothing of the machine; the digest beside the path says which file it was.
    """
    for folder in folders:
        try:
            return Path(path).relative_to(folder.resolve()).as_posix()
        except ValueError:
            continue
    return Path(path).name


def check_writable(folder: Path, key: str) -> None:
    """Raise ``UserError``, naming ``key``, unless files can be made in ``folder``, which is created."""
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{key}: cannot write to {folder} ({error.strerror}); expected a writable folder") from error


def make_folder(folder: Path) -> None:
    """Create ``folder`` and those above it that are missing; when this returns a power cut takes none of them."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync_folder(one.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """All of ``content`` or nothing, whenever the process dies; when this returns a power cut does not take it back."""
    part = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on disk: a synced file whose new name is not may be gone after a power cut.

    A no-op where the system has no such thing. Raises ``OSError`` where the disk fails.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _CANNOT_SYNC:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(handle)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or one that no file can have
        return False
