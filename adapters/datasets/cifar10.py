"""CIFAR-10 through torchvision, downloaded when it is missing and the network allows."""

from __future__ import annotations

import logging
import tarfile
import zipfile
from pathlib import Path

import torch

from adapters.compat import import_torchvision
from adapters.datasets.download import network_timeout
from adapters.errors import UserError
from adapters.protocols import ImageTensors, LabelledImages

log = logging.getLogger(__name__)

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
POOL_SIZE = 5000


class Cifar10:
    """The original pixels, checked against torchvision's MD5 sums: 50,000 to train on, 10,000 to test on."""

    name = "cifar10"

    def sources(self, root: Path) -> list[Path]:
        files = [root / FOLDER / f"data_batch_{number}" for number in range(1, 6)]
        files += [root / FOLDER / "test_batch", root / FOLDER / "batches.meta"]
        if not all(file.is_file() for file in files):
            _download(root)
        return files

    def load(self, root: Path) -> ImageTensors:
        datasets = import_torchvision("torchvision.datasets")
        parts = []
        for train in (True, False):
            try:
                stored = datasets.CIFAR10(root=str(root), train=train, download=False)
            except RuntimeError as error:  # a batch with the wrong MD5 sum
                raise UserError(
                    f"cell.dataset: {root / FOLDER} is damaged ({error}); delete it, then {_WAYS}"
                ) from error
            images = torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous()
            parts.append(LabelledImages(images, torch.tensor(stored.targets, dtype=torch.int64)))
        return ImageTensors(self.name, parts[0], parts[1], tuple(stored.classes), POOL_SIZE)


_WAYS = (
    f"either let this program download it (a network that reaches {URL}), "
    f"or put {ARCHIVE} (unpacked or not) into that folder yourself"
)


def _download(root: Path) -> None:
    datasets = import_torchvision("torchvision.datasets")
    log.info("CIFAR-10 is not in %s: trying to download it", root)
    try:
        with network_timeout():
            datasets.CIFAR10(root=str(root), train=True, download=True)
    except (OSError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        hint = ""
        if (root / "cifar10_jpeg").is_dir():
            hint = "; the JPEG copy in cifar10_jpeg/ is another data set, named cifar10_jpeg"
        raise UserError(
            f"cell.dataset: CIFAR-10 not found: looked for {FOLDER}/ and {ARCHIVE} in {root}, and downloading failed "
            f"({type(error).__name__}: {error}); {_WAYS}{hint}"
        ) from error
