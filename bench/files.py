"""The files a sweep names: where they are looked for, what they hold, and how a record writes them down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapters.errors import UserError


def find(name: str, key: str, folders: Sequence[Path]) -> Path:
    """The absolute path of the file ``name``: as given, else under the first of ``folders`` that has it.

    Raises ``UserError`` naming ``key`` and every place looked at.
    """
    given = Path(name).expanduser()
    looked = [given.absolute()]
    if not given.is_absolute():
        looked += [(folder / name).absolute() for folder in folders]
    for path in looked:
        if path.is_file():
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
