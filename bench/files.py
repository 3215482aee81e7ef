"""The files a sweep names: where they are looked for, what they hold, and how a record writes them down."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import UserError


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
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{key}: cannot write to {folder} ({error.strerror}); expected a writable folder") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or one that no file can have
        return False
