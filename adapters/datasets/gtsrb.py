"""German Traffic Sign Recognition Benchmark, cropped to the annotated sign and resized to 32 x 32."""

from __future__ import annotations

import csv
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

from adapters.compat import import_torchvision
from adapters.datasets.base import Box, read_images
from adapters.datasets.download import network_timeout
from adapters.errors import UserError
from adapters.protocols import ImageTensors, LabelledImages

log = logging.getLogger(__name__)

FULL, SMALL, TEST, IMAGE_SIZE, POOL_SIZE = 39_209, 26_640, 12_630, 32, 5000
ARCHIVES = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
TRAIN_FULL = ("GTSRB_Final_Training_Images.zip", "f33fd80ac59bff73c82d25ab499e03a3")
TRAIN_SMALL = ("GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478")
TEST_IMAGES = ("GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185")
TEST_LABELS = ("GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5")
"""Archives and their MD5 sums; all but the first are those that torchvision's GTSRB fetches."""
KINDS = {FULL: ("the full training set", "gtsrb"), SMALL: ("torchvision's older training set", "gtsrb_26640")}
"""Number of training images to what they are and the data set they are called here."""


@dataclass(frozen=True)
class Gtsrb:
    """One of the two training sets in circulation, and the test set they share.

    The paper trains on 39,209 images; torchvision's own download brings 26,640. Which one a folder holds is counted,
    and the other one is refused: their figures must not be mixed. ``name`` and ``train_size`` go together.
    """

    name: str
    train_size: int
    test_size: int = TEST
    pool_size: int = POOL_SIZE

    def sources(self, root: Path) -> list[Path]:
        test, annotations = root / "gtsrb/GTSRB/Final_Test/Images", root / "gtsrb/GT-final_test.csv"
        present = {
            self._archive(): self._train_folder(root) is not None,
            TEST_IMAGES: test.is_dir(),
            TEST_LABELS: annotations.is_file(),
        }
        self._download(root, [archive for archive, there in present.items() if not there])
        train = self._train_folder(root)
        if train is None:
            raise self._missing(root, "the archive held no training folder")
        classes = sorted(folder for folder in train.iterdir() if folder.is_dir())
        return [*classes, *(folder / f"GT-{folder.name}.csv" for folder in classes), test, annotations]

    def load(self, root: Path) -> ImageTensors:
        train_folder = self._train_folder(root)
        if train_folder is None:
            raise self._missing(root, "no training folder")
        classes = sorted(folder for folder in train_folder.iterdir() if folder.is_dir())
        self._check_count(root, train_folder, sum(1 for folder in classes for _ in folder.glob("*.ppm")))
        train = _Rows.read([(folder / f"GT-{folder.name}.csv", folder) for folder in classes])
        test = _Rows.read([(root / "gtsrb/GT-final_test.csv", root / "gtsrb/GTSRB/Final_Test/Images")])
        for rows, expected, what in ((train, self.train_size, "training"), (test, self.test_size, "test")):
            if len(rows.paths) != expected:
                raise UserError(
                    f"cell.dataset: {self.name}: the annotations below {root / 'gtsrb'} list {len(rows.paths)} {what} "
                    f"images; expected {expected}: unpack the archive again"
                )
        names = tuple(folder.name for folder in classes)
        return ImageTensors(self.name, train.images(), test.images(), names, self.pool_size)

    def _train_folder(self, root: Path) -> Path | None:
        """Either archive's layout; the full set's own folder counts first unless the small set is asked for."""
        folders = [root / "gtsrb/GTSRB/Final_Training/Images", root / "gtsrb/GTSRB/Training"]
        if self.train_size == SMALL:
            folders.reverse()
        return next((folder for folder in folders if folder.is_dir()), None)

    def _check_count(self, root: Path, folder: Path, found: int) -> None:
        if found == self.train_size:
            return
        kind, other = KINDS.get(found, ("neither of the two known training sets, so an incomplete copy", ""))
        advice = f"; to use these images, name the data set {other}" if other else ""
        raise UserError(
            f"cell.dataset: {self.name}: {folder} holds {found} training images, {kind}; expected {self.train_size}, "
            f"from {ARCHIVES}/{self._archive()[0]} unpacked in {root / 'gtsrb'}{advice}"
        )

    def _archive(self) -> tuple[str, str]:
        return TRAIN_SMALL if self.train_size == SMALL else TRAIN_FULL

    def _download(self, root: Path, archives: list[tuple[str, str]]) -> None:
        if not archives:
            return
        utils = import_torchvision("torchvision.datasets.utils")
        log.info("GTSRB is not complete in %s: trying to download it", root / "gtsrb")
        try:
            with network_timeout():
                for name, md5 in archives:
                    utils.download_and_extract_archive(f"{ARCHIVES}/{name}", str(root / "gtsrb"), md5=md5)
        except (OSError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
            raise self._missing(root, f"{type(error).__name__}: {error}") from error

    def _missing(self, root: Path, reason: str) -> UserError:
        return UserError(
            f"cell.dataset: {self.name} not found: looked for GTSRB/Training/ or GTSRB/Final_Training/Images/, "
            f"GTSRB/Final_Test/Images/ and GT-final_test.csv in {root / 'gtsrb'}, and downloading failed ({reason}); "
            f"either let this program download them (a network that reaches sid.erda.dk), or unpack "
            f"{self._archive()[0]}, {TEST_IMAGES[0]} and {TEST_LABELS[0]} from {ARCHIVES}/ there"
        )


@dataclass(frozen=True)
class _Rows:
    """Annotation rows: where an image lies, its class, and the sign's box as shares of width and height."""

    paths: list[Path]
    labels: list[int]
    boxes: list[Box]

    @classmethod
    def read(cls, tables: list[tuple[Path, Path]]) -> _Rows:
        rows = cls([], [], [])
        for table, folder in tables:
            try:
                with table.open(newline="") as file:
                    for row in csv.DictReader(file, delimiter=";", skipinitialspace=True):
                        rows._add(row, folder)
            except (OSError, KeyError, ValueError, TypeError, ZeroDivisionError) as error:
                raise UserError(
                    f"cell.dataset: {table} cannot be read as a GTSRB annotation file ({type(error).__name__}: {error})"
                ) from error
        return rows

    def _add(self, row: dict[str, str], folder: Path) -> None:
        # The region stands in pixels of the original image, whose size is in the same row: a copy that was resized
        # keeps its shares.
        width, height = int(row["Width"]), int(row["Height"])
        box = (
            int(row["Roi.X1"]) / width,
            int(row["Roi.Y1"]) / height,
            int(row["Roi.X2"]) / width,
            int(row["Roi.Y2"]) / height,
        )
        self.paths.append(folder / row["Filename"])
        self.labels.append(int(row["ClassId"]))
        self.boxes.append(box)

    def images(self) -> LabelledImages:
        return read_images(self.paths, self.labels, IMAGE_SIZE, self.boxes)
