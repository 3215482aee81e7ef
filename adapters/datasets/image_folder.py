"""Anyone's own images: one folder a class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from adapters.datasets.base import read_images, stratified_split
from adapters.errors import UserError
from adapters.protocols import ImageTensors

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif"})
PREFIX = "image_folder"
FORM = f"{PREFIX}:PATH"


@dataclass(frozen=True)
class ImageFolder:
    """``path`` (relative to the data root) holds ``train/`` and ``test/``, or the classes themselves.

    Without the two folders a fixed fifth of every class is the test set. Images are resized to ``size`` x ``size``
    pixels, whatever their shape, and become RGB, without their transparency; files that are not images by their
    extension are passed over. ``pool_size`` None is half of the test set.
    """

    name: str
    path: str
    size: int = 32
    pool_size: int | None = None

    @classmethod
    def parse(cls, name: str) -> ImageFolder:
        """``image_folder:PATH`` or ``image_folder:PATH?size=64``."""
        path, _, size = name.removeprefix(f"{PREFIX}:").partition("?size=")
        if not name.startswith(f"{PREFIX}:") or not path.strip():
            raise UserError(f"cell.dataset: found {name!r}; expected {FORM}, the path relative to the data root")
        if size and not (size.isdecimal() and 8 <= int(size) <= 1024 and int(size) % 8 == 0):
            raise UserError(f"cell.dataset: {name!r}: found size {size!r}; expected a multiple of 8 from 8 to 1024")
        return cls(name, path, int(size or 32))

    def sources(self, root: Path) -> list[Path]:
        _, train, test = self._find(root)
        return [path for path, _ in train + test]

    def load(self, root: Path) -> ImageTensors:
        names, train, test = self._find(root)
        parts = [
            read_images([path for path, _ in part], [label for _, label in part], self.size) for part in (train, test)
        ]
        return ImageTensors(self.name, parts[0], parts[1], names, self.pool_size or len(test) // 2)

    def _find(self, root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]], list[tuple[Path, int]]]:
        """Class names, and (file, label) of the training and of the test images."""
        folder = root / self.path
        if not _is_dir(folder):
            raise UserError(f"cell.dataset: {self.name}: looked for the folder {folder}, which is not there; {_LAYOUT}")
        if (folder / "train").is_dir() != (folder / "test").is_dir():
            raise UserError(f"cell.dataset: {self.name}: {folder} holds only one of train/ and test/; {_LAYOUT}")
        if not (folder / "train").is_dir():
            names, samples = _samples(folder)
            labels = [label for _, label in samples]
            train, test = stratified_split(labels, max(2, round(len(labels) / 5)), seed=0)
            return names, [samples[index] for index in train], [samples[index] for index in test]
        names, training = _samples(folder / "train")
        test_names, testing = _samples(folder / "test")
        if names != test_names:
            odd = ", ".join(sorted(set(names) ^ set(test_names)))
            raise UserError(f"cell.dataset: {self.name}: train/ and test/ hold different classes; only in one: {odd}")
        return names, training, testing


def _is_dir(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except (OSError, ValueError):  # a name too long, or one that no folder can have
        return False


_LAYOUT = "put PATH/train/CLASS/*.png and PATH/test/CLASS/*.png there, or PATH/CLASS/*.png to have it split"


def _samples(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Sorted class names and every image below them with its label."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found: list[tuple[Path, int]] = []
    for label, path in enumerate(classes):
        images = sorted(
            Path(below, file)
            for below, _, files in os.walk(path, followlinks=True)
            for file in files
            if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith(".")
        )
        if not images:
            raise UserError(
                f"cell.dataset: {path} holds no image; expected files named {', '.join(sorted(EXTENSIONS))}"
            )
        found += [(file, label) for file in images]
    if len(classes) < 2:
        raise UserError(f"cell.dataset: {folder} holds {len(classes)} class folders; expected at least 2; {_LAYOUT}")
    return tuple(path.name for path in classes), found
