"""The data sets by name."""

from __future__ import annotations

from pathlib import Path

from adapters.datasets.base import Source
from adapters.datasets.cache import load_cached
from adapters.datasets.cifar10 import Cifar10
from adapters.datasets.digits import Digits
from adapters.datasets.gtsrb import FULL, SMALL, Gtsrb
from adapters.datasets.image_folder import FORM, PREFIX, ImageFolder
from adapters.errors import unknown_name
from adapters.protocols import ImageTensors
from adapters.registry import add

DATASETS: dict[str, Source] = {}
"""Every data set with a fixed name; ``image_folder:PATH`` stands beside them."""

_SOURCES: tuple[Source, ...] = (
    Digits(),
    Cifar10(),
    ImageFolder("cifar10_jpeg", "cifar10_jpeg", pool_size=5000),  # softer than the original: never called cifar10
    Gtsrb("gtsrb", FULL),
    Gtsrb("gtsrb_26640", SMALL),
)
for _source in _SOURCES:
    add(DATASETS, _source.name, _source)


def resolve(name: str) -> Source:
    """The data set called ``name``; ``UserError`` lists the known ones otherwise."""
    if name == PREFIX or name.startswith(f"{PREFIX}:"):
        return ImageFolder.parse(name)
    if name not in DATASETS:
        raise unknown_name("cell.dataset", name, [*DATASETS, FORM])
    return DATASETS[name]


def check_name(name: str) -> None:
    """Raise ``UserError`` unless ``name`` is a data set; looks at no file."""
    resolve(name)


def load(name: str, data_root: Path, cache_dir: Path) -> ImageTensors:
    """The data set ``name`` found below ``data_root``, decoded once and kept below ``cache_dir/datasets``.

    The tensors are memory-mapped: processes that load the same data set share its pages, and what one of them
    writes stays its own. Raises ``UserError`` for an unknown name and for data that is missing or damaged.
    """
    return load_cached(resolve(name), Path(data_root), Path(cache_dir))
