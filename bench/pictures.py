"""Pictures in a record's details become files beside the records, named by content; the record keeps their path."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.files import make_folder, write_atomically

FOLDER = "pictures"
PREFIX = "data:image/png;base64,"
_KEPT = re.compile(rf"{FOLDER}/([0-9a-f]{{16}}\.png)")


def keep(details: Any, folder: Path) -> Any:
    """``details`` (JSON) with every PNG data address written to ``folder/pictures`` and replaced by its relative path.

    Text that only looks like one is left as it is.
    """
    if isinstance(details, dict):
        return {key: keep(value, folder) for key, value in details.items()}
    if isinstance(details, list | tuple):
        return [keep(value, folder) for value in details]
    if not isinstance(details, str) or not details.startswith(PREFIX):
        return details
    try:
        content = base64.b64decode(details.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        return details
    return _write(content, folder)


def names(details: Any) -> Iterator[str]:
    """The names of the files in ``folder/pictures`` that ``details``, as ``keep`` left them, point to."""
    if isinstance(details, dict):
        details = list(details.values())
    if isinstance(details, list | tuple):
        for value in details:
            yield from names(value)
    elif isinstance(details, str) and (match := _KEPT.fullmatch(details)):
        yield match[1]


def _write(content: bytes, folder: Path) -> str:
    path = folder / FOLDER / f"{hashlib.sha256(content).hexdigest()[:16]}.png"
    if not path.exists():
        make_folder(path.parent)
        write_atomically(path, content)
    return path.relative_to(folder).as_posix()
