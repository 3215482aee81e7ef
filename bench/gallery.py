"""``python -m bench.gallery --dataset D``: the paper's Figure 2, a contact sheet of every trigger on one image.

A row a trigger: the clean image, the triggered one, their difference (grey is none, the largest of the row is black or
white), and the DCT spectra of clean and triggered images (log magnitude, mean over test images, low frequencies in the
upper left corner), with the trigger's norms, PSNR and SSIM.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters import attacks, datasets
from adapters.attacks.spectrum import log_spectrum
from adapters.errors import UserError
from adapters.protocols import ImageTensors
from bench import published
from bench.cells import Cell, Training
from bench.report import style
from bench.report.names import attack_name
from bench.training import default_training
from bench.victims import VictimStore

COLUMNS = ("clean", "triggered", "difference", "spectrum, clean", "spectrum, triggered")
IMAGES = 256
"""Test images behind the spectra and the figures."""


class Row(NamedTuple):
    """One trigger: images and difference (C, H, W) in [0, 1], spectra (H, W) of log10 magnitudes, and its figures."""

    name: str
    target: int
    clean: Tensor
    triggered: Tensor
    difference: Tensor
    spectra: tuple[Tensor, Tensor]
    figures: attacks.Visibility


@dataclass(frozen=True)
class Options:
    dataset: str
    data_root: Path
    cache: Path
    file: Path
    triggers: tuple[str, ...]
    epochs: int | None
    image: int


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for wrong input (one line on standard error)."""
    try:
        options = parse(argv)
        data = datasets.load(options.dataset, options.data_root, options.cache)
        rows = gallery(data, options)
        options.file.parent.mkdir(parents=True, exist_ok=True)
        options.file.write_bytes(draw(data.name, rows))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --file: cannot write {options.file} ({error.strerror})", file=sys.stderr)
        return 2
    for row in rows:
        print(_caption(row))
    print(options.file)
    return 0


def parse(argv: Sequence[str] | None) -> Options:
    known = [*attacks.TRIGGERS, *attacks.FITS]
    parser = argparse.ArgumentParser(prog="python -m bench.gallery", description="A contact sheet of every trigger.")
    parser.add_argument("--dataset", required=True, help="as in a sweep file, e.g. gtsrb")
    parser.add_argument("--triggers", default=",".join(known), help="comma-separated (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="of the clean model (default: the data set's)")
    parser.add_argument("--image", type=int, default=0, help="which test image to show (default: 0)")
    parser.add_argument("--data-root", type=Path, help="where the data sets lie (default: $IBAU_BENCH_DATA or data)")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="as a sweep's (default: %(default)s)")
    parser.add_argument("--file", type=Path, help="the PNG to write (default: gallery.png)")
    given = parser.parse_args(argv)
    datasets.check_name(given.dataset)
    triggers = tuple(name.strip() for name in given.triggers.split(","))
    for name in triggers:
        attacks.check(name, "--triggers")
    if given.epochs is not None and given.epochs < 1:
        raise UserError(f"--epochs: found {given.epochs}; expected at least 1")
    return Options(
        dataset=given.dataset,
        data_root=(given.data_root or Path(os.environ.get("IBAU_BENCH_DATA") or "data")).expanduser().absolute(),
        cache=given.cache.expanduser().absolute(),
        file=(given.file or Path("gallery.png")).expanduser(),
        triggers=triggers,
        epochs=given.epochs,
        image=given.image,
    )


def gallery(data: ImageTensors, options: Options) -> list[Row]:
    """A row for each trigger; trains the clean model and fits what nobody has fitted yet."""
    count = len(data.test.images)
    if not 0 <= options.image < count:
        raise UserError(f"--image: found {options.image}; expected a test image from 0 to {count - 1}")
    settings = default_training(options.dataset) | ({"epochs": options.epochs} if options.epochs else {})
    training = Training.model_validate(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = VictimStore(options.cache)
    rows = []
    for name in options.triggers:
        target = published.TARGETS.get(name, 0) % data.num_classes
        cell = Cell(
            dataset=options.dataset,
            model="simplified_vgg",
            attack=name,
            target=target,
            poison_ratio=0.2,
            training=training,
            defense={"name": "none"},
        )
        ((trigger, _),) = store.attacks(cell, data, device)
        shown = torch.arange(IMAGES).add(options.image).remainder(count)[:count]
        clean = data.test.images[shown].float().div_(255)
        triggered = trigger(clean)
        rows.append(_row(name, target, clean, triggered))
    return rows


def _row(name: str, target: int, clean: Tensor, triggered: Tensor) -> Row:
    change = triggered[0] - clean[0]
    scaled = 0.5 + 0.5 * change / change.abs().amax().clamp_min(1e-6)
    spectra = (log_spectrum(clean), log_spectrum(triggered))
    return Row(name, target, clean[0], triggered[0], scaled, spectra, attacks.visibility(clean, triggered))


def draw(title: str, rows: Sequence[Row]) -> bytes:
    """The contact sheet as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.drawing():
        figure = Figure(figsize=(1.7 * len(COLUMNS) + 0.4, 1.95 * len(rows) + 0.6), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.02, ha="left")
        axes = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
        for place, row in zip(axes, rows, strict=True):
            _draw_row(place, row)
        for axis, name in zip(axes[0], COLUMNS, strict=True):
            axis.set_title(f"{name}\n{axis.get_title('left')}".strip())
        return style.save(figure)[1]


def _draw_row(axes: Sequence[Any], row: Row) -> None:
    for axis, image in zip(axes[:3], (row.clean, row.triggered, row.difference), strict=True):
        pixels = image.permute(1, 2, 0).numpy()
        axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    low, high = float(row.spectra[0].min()), float(row.spectra[0].max())
    for axis, spectrum in zip(axes[3:], row.spectra, strict=True):
        axis.imshow(spectrum.numpy(), cmap="magma", vmin=low, vmax=high, interpolation="nearest")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
    axes[0].set_ylabel(f"{attack_name(row.name)} → {row.target}")
    seen = row.figures
    psnr = "–" if seen.psnr is None else f"{seen.psnr:.1f} dB"
    axes[0].set_xlabel(f"ℓ0 {seen.l0:.0f}  ℓ2 {seen.l2:.2f}", fontsize=7.5)
    axes[1].set_xlabel(f"PSNR {psnr}  SSIM {seen.ssim:.2f}", fontsize=7.5)
    axes[2].set_xlabel(f"ℓ∞ {seen.linf:.2f}", fontsize=7.5)


def _caption(row: Row) -> str:
    figures = ", ".join(
        f"{key} {'–' if value is None else f'{value:.3f}'}" for key, value in row.figures._asdict().items()
    )
    return f"{row.name} → {row.target}: {figures}"


if __name__ == "__main__":
    sys.exit(main())
