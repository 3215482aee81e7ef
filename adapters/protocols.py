"""The four seams of the harness, Dataset, Model, Attack and Defense, and the values that cross them.

A plug-in writes only the work itself (``load``, ``build``, ``__call__``, ``run``); the harness validates,
seeds, times and scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn


class LabelledImages(NamedTuple):
    """Images and their labels.

    ``images``: (N, C, H, W), uint8 in [0, 255] as stored, or float in [0, 1] as handed to a defense.
    ``labels``: (N,) int64 in [0, num_classes).
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageTensors:
    """A decoded data set. ``train`` and ``test`` hold uint8 images of one common shape (C, H, W).

    ``pool_size`` test images form the defender's pool and the others the scoring set (``bench.splits``).
    """

    name: str
    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]
    pool_size: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


@runtime_checkable
class Dataset(Protocol):
    """A source of images. ``load`` decodes everything; the harness caches what it returns."""

    name: str

    def load(self, root: Path) -> ImageTensors:
        """Decode the data set found under ``root``; raises ``UserError`` saying what is missing and where."""
        ...


@runtime_checkable
class Trigger(Protocol):
    """A backdoor pattern: images in, images out, on any device."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """``images``: (N, C, H, W) float in [0, 1]; returns the same shape, dtype and device, in [0, 1]."""
        ...


@runtime_checkable
class LabelMap(Protocol):
    """Which label a triggered image is meant to get."""

    def __call__(self, labels: Tensor) -> Tensor:
        """(N,) int64 true labels to (N,) int64 labels the attacker wants."""
        ...

    def is_poisonable(self, labels: Tensor) -> Tensor:
        """(N,) bool: whether the map changes the label (an image already of the target class is not)."""
        ...


class PassCounter:
    """The cost ledger: how many images went forward and backward through the network.

    ``attach`` hooks a module; copies of the module (``copy.deepcopy``) go on counting here, so that a defense
    cannot forget to. Work that hooks cannot see (a replayed CUDA graph) is added by hand with ``add``. A backward
    pass through a gradient's own graph (double backward) counts as one backward pass of its images.
    """

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0
        self.enabled = True

    def add(self, forward: int = 0, backward: int = 0) -> None:
        if self.enabled:
            self.forward += forward
            self.backward += backward

    def attach(self, model: nn.Module) -> Callable[[], None]:
        """Count every pass through ``model`` and its deep copies from now on; returns the call that detaches."""
        counter = self

        def count_backward(gradient: Tensor) -> None:
            counter.add(backward=gradient.shape[0])

        def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            counter.add(forward=output.shape[0])
            if output.requires_grad:
                output.register_hook(count_backward)

        return model.register_forward_hook(count).remove

    def __deepcopy__(self, memo: dict[int, Any]) -> PassCounter:
        return self

    def as_dict(self) -> dict[str, int]:
        return {"forward": self.forward, "backward": self.backward}


def _ignore_round(model: nn.Module, info: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True)
class DefenseContext:
    """What a defense may know besides the model and the clean set: nothing of the attack or the test images.

    ``radius`` is C_delta, the norm bound in the units of pixels in [0, 1]. ``seed`` is the root of every random
    choice the defense makes. After each of its rounds a defense calls ``on_round(model, info)``; the harness
    stops its clock, scores the model and keeps ``info`` (JSON-able diagnostics); ``helper: True`` there says that the
    defense would never return this model, such as NAD's teacher, and that its scores are no effect of the defense.
    ``deadline`` is a value of ``time.monotonic()`` past which the defense stops with what it has. ``micro_batch``, if
    given, is how many images may go through the network at once: an earlier attempt ran out of memory
    (``Defense.bounds_memory``).
    """

    num_classes: int
    device: torch.device
    seed: int
    radius: float | None = None
    deadline: float | None = None
    on_round: Callable[[nn.Module, Mapping[str, Any]], None] = _ignore_round
    passes: PassCounter = field(default_factory=PassCounter)
    micro_batch: int | None = None

    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline


class TrainingData(NamedTuple):
    """A training set of R examples, poison included: united poisoned copies show an image many times. A context's is on
    the CPU.

    ``images``: (M, C, H, W) uint8, each stored once; ``labels``: (R,) int64, as poisoned; ``rows``: (R,) int64, which
    image each example shows.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


@dataclass(frozen=True, kw_only=True)
class TrainingContext(DefenseContext):
    """The context of a defense that trains anew (``Defense.needs_training_data``), and of no other.

    ``training_data``: what the victim was trained on. ``untrained()``: a network of the victim's architecture, freshly
    initialised, on the CPU; passes through it and its copies are counted.
    """

    training_data: TrainingData
    untrained: Callable[[], nn.Module]


class DefenseResult(NamedTuple):
    """What a defense returns: the model in evaluation mode, a record status, its reason, JSON-able details.

    A picture in ``details`` is a PNG as a data address (``data:image/png;base64,…``); the store makes a file of it.
    """

    model: nn.Module
    status: str = "ok"  # ok | no_trigger_detected | diverged | timeout
    reason: str | None = None
    details: Mapping[str, Any] = {}


class Defense(BaseModel):
    """Base of every defense: its fields are its settings (validated, frozen, unknown ones refused).

    ``uses`` names which of the cell's axes ``clean_size`` and ``radius`` the defense's result depends on: cells
    that differ only in an axis the defense ignores are one cell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), strict=True)

    name: ClassVar[str]
    uses: ClassVar[frozenset[str]] = frozenset({"clean_size"})
    needs_training_data: ClassVar[bool] = False
    """Whether ``run`` gets a ``TrainingContext``: the poisoned training data besides the clean set."""
    bounds_memory: ClassVar[bool] = False
    """Whether ``run`` keeps to ``context.micro_batch`` and gives the same result under it: it is then run again, in
    smaller and smaller ones, when memory runs out."""

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, settings: Any) -> Any:
        """YAML knows lists alone; of other types nothing is converted, but a whole number to a float."""
        if not isinstance(settings, dict):
            return settings
        wanted = {key for key, field in cls.model_fields.items() if "tuple[" in str(field.annotation)}
        return {
            key: tuple(value) if key in wanted and isinstance(value, list) else value for key, value in settings.items()
        }

    def check(self, key: str) -> None:
        """Raise ``UserError``, naming the setting under ``key``, for settings that do not go together."""

    def check_clean_size(self, count: int, key: str) -> None:
        """Raise ``UserError``, naming the setting under ``key``, if the settings cannot work with ``count`` images."""

    def work(self, images: int, classes: int) -> float:
        """How many images go through the network, about, up to a factor of the defense's own.

        By it the time of other settings and other sets is estimated from records (``bench.estimate``). ``images`` are
        those of the clean set, or of the training data where it gets them.
        """
        return float(images)

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        """Return an unlearned copy of ``model``; ``model`` itself, its mode and its gradients stay as they are.

        ``clean.images``: (n, C, H, W) float32 in [0, 1] on ``context.device``; ``clean.labels``: (n,) int64.
        """
        raise NotImplementedError
