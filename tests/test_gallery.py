"""The contact sheet: every trigger, on real rows, or one line that says what is wrong."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import tiny_sweep
import torch
from PIL import Image

from adapters import attacks
from adapters.attacks.invisible import L0Invisible, L2Invisible
from adapters.attacks.smooth import Smooth
from adapters.attacks.spectrum import low_band
from adapters.attacks.trojan import TrojanSquare, TrojanWatermark
from adapters.datasets import load
from bench import gallery

QUICK = (L0Invisible(steps=1), L2Invisible(steps=1, stages=1), Smooth(steps=2), TrojanSquare(steps=2))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_sweep.write_images(tmp_path)
    for fit in (*QUICK, TrojanWatermark(steps=2)):
        monkeypatch.setitem(attacks.FITS, fit.name, fit)
    return tmp_path


def call(place: Path, *arguments: str) -> int:
    fixed = ["--data-root", str(place), "--cache", str(place / "cache"), "--file", str(place / "out" / "sheet.png")]
    return gallery.main([*fixed, "--dataset", tiny_sweep.DATASET, "--epochs", "1", *arguments])


def test_every_trigger_has_its_row(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(place) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(" →")[0] for line in lines[:-1]]
    assert names == [*attacks.TRIGGERS, *attacks.FITS]
    sheet = Image.open(io.BytesIO((place / "out" / "sheet.png").read_bytes()))
    assert sheet.height > sheet.width, "a row a trigger"
    assert len(set(sheet.convert("L").tobytes())) > 50, "it shows something"


def test_rows_hold_what_they_say(place: Path) -> None:
    data = load(tiny_sweep.DATASET, place, place / "cache")
    arguments = ["--dataset", tiny_sweep.DATASET, "--triggers", "badnets,smooth", "--image", "5", "--epochs", "1"]
    options = gallery.parse([*arguments, "--data-root", str(place), "--cache", str(place / "cache")])
    badnets, smooth = gallery.gallery(data, options)
    expected = data.test.images[5].float() / 255
    assert torch.equal(badnets.clean, expected)
    assert torch.equal(badnets.triggered, attacks.build("badnets", data.image_shape, 0)(expected[None])[0])
    assert (badnets.target, smooth.target) == (8 % 3, 6 % 3)
    unchanged = (badnets.triggered == expected).all(dim=0)
    assert (badnets.difference[:, unchanged] == 0.5).all()
    assert badnets.figures.l0 == 4
    assert not torch.equal(*badnets.spectra)
    low = low_band(16, 16, Smooth().band)
    low[0, 0] = True
    fall = (smooth.spectra[1] - smooth.spectra[0])[~low]
    torch.testing.assert_close(fall, torch.full_like(fall, math.log10(1 - Smooth().alpha)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--triggers", "badnets,smiley"], "--triggers: unknown name 'smiley'; expected one of: badnets"),
        (["--image", "48"], "--image: found 48; expected a test image from 0 to 47"),
        (["--epochs", "0"], "--epochs: found 0; expected at least 1"),
        (["--dataset", "mnist"], "unknown name 'mnist'; expected one of"),
    ],
)
def test_wrong_input_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call(place, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
