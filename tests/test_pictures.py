"""Pictures in a record's details: encoded, written beside the records, replaced by their path."""

from __future__ import annotations

import io
from pathlib import Path

import fake_cells
import numpy as np
import pytest
import torch
from PIL import Image

from adapters.defenses.pictures import PREFIX, png
from bench import pictures
from bench.records import Record, RecordStore


@pytest.mark.parametrize(("shape", "mode"), [((3, 5, 4), "RGB"), ((1, 5, 4), "L"), ((5, 4), "L"), ((2, 5, 4), "L")])
def test_a_picture_comes_back(tmp_path: Path, shape: tuple[int, ...], mode: str) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    path = pictures.keep(png(image), tmp_path)
    with Image.open(io.BytesIO((tmp_path / path).read_bytes())) as opened:
        assert opened.mode == mode
        array = np.array(opened)
    expected = image.clamp(0, 1).numpy() * 255
    expected = expected.transpose(1, 2, 0) if mode == "RGB" else expected.reshape(-1, 5, 4)[0]
    assert np.abs(array - expected).max() <= 0.5001


def test_the_store_writes_files_and_the_record_names_them(tmp_path: Path) -> None:
    details = {
        "triggers": {"3": {"mask": png(torch.zeros(2, 2))}},
        "norms": [1.0, None],
        "note": PREFIX + "not base64!",
    }
    record = fake_cells.record().model_copy(update={"details": details})
    store = RecordStore(tmp_path)
    store.append(record)
    kept = store.read()[0].details
    path = kept["triggers"]["3"]["mask"]
    assert path.startswith("pictures/")
    assert path.endswith(".png")
    assert (tmp_path / path).read_bytes().startswith(b"\x89PNG")
    assert kept["norms"] == [1.0, None]
    assert kept["note"] == details["note"]
    assert not list((tmp_path / "pictures").glob("*.tmp"))
    store.append(record)
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_a_record_without_details_is_one_of_before(tmp_path: Path) -> None:
    line = fake_cells.record().model_dump(mode="json", by_alias=True)
    for key in ("details", "evasion_accuracy", "evasion_accuracy_interval"):
        del line[key]
    assert Record.model_validate(line).details == {}
