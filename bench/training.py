"""Victims are trained here: data resident on the device, channels-last, bf16, Adam under a one-cycle schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapters.training_step import TrainingStep, descent
from bench.cells import Training
from ibau_defense.cuda import now

PAD = 4
"""Pixels by which augmentation pads an image before it crops."""

DEFAULT_TRAINING: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 10, "batch_size": 32, "peak_lr": 0.002},
    "gtsrb": {"epochs": 8},
    "cifar10": {"epochs": 20},
}
"""Settings that differ from ``Training``'s, by data set."""

_FALLBACK: dict[str, Any] = {"epochs": 20}


class TrainingDiverged(RuntimeError):  # noqa: N818 (the field's term, and a record status)
    """The loss is no longer a finite number."""


class TrainingReport(NamedTuple):
    """``seconds`` of wall time; ``final_loss``: mean cross-entropy of the last epoch, in nats.

    ``precision`` of the network's own arithmetic: bfloat16 or float32. Parameters and loss are float32 throughout.
    """

    seconds: float
    images_per_second: float
    final_loss: float
    precision: str


def default_training(dataset: str) -> dict[str, Any]:
    """The settings of ``Training`` that suit ``dataset``; what is not named keeps ``Training``'s own default."""
    return dict(DEFAULT_TRAINING.get(dataset, _FALLBACK))


def _ignore_epoch(epoch: int, epochs: int) -> None:
    return None


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    training: Training,
    device: torch.device,
    seed: int,
    on_epoch: Callable[[int, int], None] = _ignore_epoch,
    rows: Tensor | None = None,
    recorded: bool = True,
) -> TrainingReport:
    """Train ``model`` in place; leaves it on ``device``, channels-last, in evaluation mode.

    Data order, augmentation and dropout derive from ``seed``; global random state is left as found. Nothing inside
    an epoch waits for the device.

    Args:
        images: (M, C, H, W) uint8 in [0, 255].
        labels: (R,) int64, of the examples; R = M unless ``rows`` are given.
        on_epoch: called with (epochs done, epochs) after each epoch.
        rows: (R,) int64, which image each example shows: a set may show an image many times and hold it once.
        recorded: on a CUDA device, record a step and replay it (``adapters.training_step``).

    Raises:
        TrainingDiverged: the loss became infinite or NaN.
    """
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    rows = torch.arange(len(images)) if rows is None else rows
    data = _Resident(images, labels, rows, training, device, drop_single=_has_batchnorm(model))
    optimizer = _adam(model, training, device)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.peak_lr, total_steps=training.epochs * data.steps
    )
    order = torch.Generator().manual_seed(seed)
    reduced, loss = autocast_dtype(device) is torch.bfloat16, float("nan")

    def cross_entropy(model: nn.Module, batch: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=reduced):
            logits = model(batch)
        return functional.cross_entropy(logits.float(), targets)

    step = TrainingStep(descent(model, cross_entropy), model.parameters(), device, recorded=recorded)
    start = now(device)
    with seeded(seed, device):
        for epoch in range(training.epochs):
            total = torch.zeros((), device=device)
            for batch, targets in data.epoch(order):
                (step_loss,) = step(batch, targets)
                optimizer.step()
                schedule.step()
                total += step_loss
            loss = float(total) / data.steps
            _check_finite(loss, epoch, training)
            on_epoch(epoch + 1, training.epochs)
    seconds = now(device) - start
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    speed = len(labels) * training.epochs / seconds
    return TrainingReport(seconds, speed, loss, "bfloat16" if reduced else "float32")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of ``device`` inside; restore their states after."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def autocast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, float32 where it would only emulate it, slower."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.bfloat16 if device.type == "cpu" and supported is not None and supported() else torch.float32


class _Resident:
    """The training set on the device, as uint8 (M, H, W, C): a batch of them is channels-last already."""

    def __init__(
        self, images: Tensor, labels: Tensor, rows: Tensor, training: Training, device: torch.device, drop_single: bool
    ) -> None:
        self.size, self.batch_size, self.augment = len(rows), training.batch_size, training.augment
        self.device = device
        # BatchNorm has no statistics of a batch of one.
        tail = self.size % self.batch_size
        self.steps = self.size // self.batch_size + (tail > (1 if drop_single else 0))
        if self.steps < 1:
            raise ValueError(f"expected at least {2 if drop_single else 1} training images, found {self.size}")
        pixels = images.to(device).permute(0, 2, 3, 1)
        self.height, self.width = pixels.shape[1:3]
        if self.augment != "none":
            pixels = functional.pad(pixels, (0, 0, PAD, PAD, PAD, PAD))
        self.pixels, self.labels, self.rows = pixels.contiguous(), labels.to(device), rows.to(device)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of ((n, C, H, W) float32 in [0, 1], channels-last; (n,) int64), in an order drawn on the CPU."""
        order = torch.randperm(self.size, generator=generator).to(self.device)
        window = self._windows(generator)
        for step in range(self.steps):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            shown = self.rows.index_select(0, index)
            if window is None:
                batch = self.pixels.index_select(0, shown)
            else:
                down, across = (one.index_select(0, index) for one in window)
                batch = self.pixels[shown[:, None, None], down[:, :, None], across[:, None, :]]
            yield batch.permute(0, 3, 1, 2).to(torch.float32).div_(255), self.labels.index_select(0, index)

    def _windows(self, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Rows (R, H) and columns (R, W) that each example shows this epoch; None without augmentation."""
        if self.augment == "none":
            return None
        shift = torch.randint(0, 2 * PAD + 1, (self.size, 2), generator=generator)
        across = torch.arange(self.width).expand(self.size, -1)
        if self.augment == "crop_flip":
            flip = torch.rand(self.size, 1, generator=generator) < 0.5
            across = torch.where(flip, self.width - 1 - across, across)
        down = torch.arange(self.height) + shift[:, :1]
        return down.to(self.device), (across + shift[:, 1:]).to(self.device)


def _adam(model: nn.Module, training: Training, device: torch.device) -> torch.optim.Adam:
    return torch.optim.Adam(
        model.parameters(),
        lr=training.peak_lr,
        weight_decay=training.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def _has_batchnorm(model: nn.Module) -> bool:
    return any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in model.modules())


def _check_finite(loss: float, epoch: int, training: Training) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise TrainingDiverged(
            f"the training loss is {loss} in epoch {epoch + 1} of {training.epochs};"
            f" a training.peak_lr below {training.peak_lr:g} may help"
        )
