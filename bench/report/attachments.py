"""Pictures beside the records that belong into the report: the trigger gallery, and triggers defenses recovered."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.pictures import FOLDER
from bench.report.cases import attack_text
from bench.report.rows import Row

GALLERIES = "gallery*.png"
MOST_BYTES = 8 * 2**20
MOST_PICTURES = 60
_PNG = b"\x89PNG\r\n\x1a\n"
_KEPT = re.compile(rf"{FOLDER}/[0-9a-f]{{16}}\.png")
"""The only paths that a record's details may lead to: those that ``bench.pictures`` writes."""


@dataclass(frozen=True)
class Picture:
    """``path`` is relative to the records; ``content`` its bytes, a PNG."""

    path: str
    caption: str
    content: bytes

    @property
    def address(self) -> str:
        """A data address, so that the page needs no file but itself."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}"


def galleries(folder: Path) -> tuple[Picture, ...]:
    """The contact sheets (``python -m bench.gallery``) that lie beside the records."""
    found = (_read(folder, path.name, path.stem.replace("_", " ")) for path in sorted(folder.glob(GALLERIES)))
    return tuple(each for each in found if each is not None)


def recovered(folder: Path, rows: Sequence[Row], labels: Mapping[str, str]) -> tuple[Picture, ...]:
    """The pictures that the details of records name, each once."""
    found: dict[str, Picture] = {}
    for row in rows:
        for place, path in _paths(row.details, ""):
            if len(found) >= MOST_PICTURES:
                break
            if path not in found:
                caption = f"{labels[row.id]}, {attack_text(row)} → {row.target}, seed {row.seed}: {place}"
                picture = _read(folder, path, caption)
                found |= {} if picture is None else {path: picture}
    return tuple(found.values())


def _paths(tree: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every picture in ``tree`` with where in it it stands."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _paths(value, f"{place} {key}".strip())
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _paths(value, f"{place} {number}".strip())
    elif isinstance(tree, str) and _KEPT.fullmatch(tree):
        yield place, tree


def _read(folder: Path, name: str, caption: str) -> Picture | None:
    """None unless it is a PNG of bearable size that lies in the folder itself, no link to elsewhere."""
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()) or path.stat().st_size > MOST_BYTES:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return Picture(name, caption, content) if content.startswith(_PNG) else None
