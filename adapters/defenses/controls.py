"""The two controls every defense is read against: nothing, and training on the clean set."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from adapters.defenses.tuning import Tuning, seeded, trainable_copy, tune, tuned_result
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages


class NoDefense(Defense):
    """The victim as it is. ``clean_size`` matters to the error gap alone."""

    name: ClassVar[str] = "none"
    uses: ClassVar[frozenset[str]] = frozenset()

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        return DefenseResult(copy.deepcopy(model).eval())


class FineTuning(Defense):
    """Plain training of all parameters on the clean set: what a defense must beat to be worth its name.

    SGD with momentum 0.9 at a constant rate, mini-batches reshuffled each epoch, in training mode (BatchNorm
    statistics follow the clean set, dropout is on), no augmentation, network passes in bfloat16 and channels-last
    as in the victim's own training (``precision: float32`` turns that off).
    """

    name: ClassVar[str] = "fine_tuning"

    epochs: Annotated[int, Field(ge=1)] = 5
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Annotated[int, Field(ge=2)] = 128
    batch_norm: Literal["train", "eval"] = "train"
    """``eval`` keeps BatchNorm's running statistics as they are, and dropout off."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def work(self, images: int, classes: int) -> float:
        return float(images * self.epochs)

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        tuned = trainable_copy(model)
        with seeded(context) as generator:
            ending = tune(tuned, clean, Tuning(**self.model_dump()), context, generator)
        return tuned_result(tuned, model, ending)
