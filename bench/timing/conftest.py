"""One backdoored model on the embedded data set, trained once a session, and the facts every timing carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.protocols import LabelledImages
from bench.cells import Cell, Training
from bench.provenance import commit, provenance
from bench.run_cell import CellRunner, Prepared
from bench.splits import clean_indices
from bench.training import default_training

CLEAN_SIZE = 300


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Prepared:
    """A simplified VGG, BadNets at 5 % on digits, with its scorer."""
    cell = Cell(
        dataset="digits", model="simplified_vgg", attack="badnets", target=8, poison_ratio=0.05,
        training=Training(**default_training("digits")), clean_size=CLEAN_SIZE, defense={"name": "none"},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("timing")
    return CellRunner(Path("data"), folder, device, commit()).prepare(cell)


@pytest.fixture(scope="session")
def clean(prepared: Prepared, device: torch.device) -> LabelledImages:
    index = clean_indices(prepared.split, CLEAN_SIZE)
    test = prepared.data.test
    return LabelledImages(test.images[index].to(device).float().div_(255), test.labels[index].to(device))


@pytest.fixture(scope="session")
def facts(device: torch.device) -> dict[str, Any]:
    """What makes two timings comparable."""
    source = provenance(device, commit())
    return source.model_dump(include={"commit", "dirty", "torch", "device", "threads"})
