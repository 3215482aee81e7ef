"""Neural Attention Distillation (Li et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.defenses.attention import attention_loss
from adapters.defenses.augmentation import crop_flip_cutout
from adapters.defenses.feature_maps import captured, check_layers, stages
from adapters.defenses.tuning import (
    Loss,
    Tuning,
    autocast,
    frozen_copy,
    seeded,
    trainable_copy,
    tune,
    tuned_result,
)  # fmt: skip
from adapters.errors import UserError
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages


class Nad(Defense):
    """A fine-tuned copy of the victim teaches the victim where to look.

    The teacher is the victim fine-tuned for ``teacher_epochs``; the student is the victim, trained for ``epochs`` on
    cross-entropy plus, for each stage, its ``betas`` times the difference of the two networks' attention maps. Both
    by Nesterov SGD at ``lr`` for ``high_lr_epochs`` and at ``low_lr`` after. A round is an epoch; those of the teacher
    show the teacher, which is never returned: where its training diverges or the time runs out in it, the result is a
    copy of the victim as it was.
    """

    name: ClassVar[str] = "nad"

    teacher_epochs: Annotated[int, Field(ge=1)] = 20
    epochs: Annotated[int, Field(ge=1)] = 20
    lr: Annotated[float, Field(gt=0)] = 0.1
    low_lr: Annotated[float, Field(gt=0)] = 0.01
    high_lr_epochs: Annotated[int, Field(ge=0)] = 2
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    batch_size: Annotated[int, Field(ge=2)] = 64
    betas: tuple[Annotated[float, Field(ge=0)], ...] = (500.0, 1000.0, 1000.0)
    """Weights of the stages' attention losses, the earliest first: those of the authors' code since January 2022."""
    power: Annotated[float, Field(gt=0)] = 2.0
    layers: tuple[str, ...] | None = None
    """Modules whose outputs are compared, one for each of ``betas``; null: the last three stages."""
    preprocessing: Literal["none", "published"] = "none"
    """``published``: crop, flip and cutout of the authors' code; flips change what a traffic sign or a digit means."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def check(self, key: str) -> None:
        if not self.betas:
            raise UserError(f"{key}.betas: found none; expected a weight for each stage")
        if self.layers is not None and len(self.layers) != len(self.betas):
            raise UserError(
                f"{key}.layers: found {len(self.layers)}; expected {len(self.betas)}, one for each of betas"
            )

    def work(self, images: int, classes: int) -> float:
        return float(images * (self.teacher_epochs + self.epochs))

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        layers = self._layers(frozen_copy(model), clean.images[:1])
        betas = self.betas[len(self.betas) - len(layers) :]
        details = {"layers": list(layers), "betas": list(betas)}
        with seeded(context) as generator:
            change = partial(crop_flip_cutout, generator=generator) if self.preprocessing == "published" else None
            teacher, student = trainable_copy(model), trainable_copy(model)
            first = tune(
                teacher, clean, self._tuning(self.teacher_epochs), context, generator, change=change,
                info={"phase": "teacher", "helper": True},
            )  # fmt: skip
            if first.status != "ok":  # the teacher is never returned; the student is the victim still
                return tuned_result(student, model, first, details)
            loss = distillation(frozen_copy(teacher), layers, betas, self.power, self.precision)
            ending = tune(
                student, clean, self._tuning(self.epochs), context, generator, loss=loss, change=change,
                first_round=first.rounds, info={"phase": "student"},
            )  # fmt: skip
        return tuned_result(student, model, ending, details)

    def _layers(self, model: nn.Module, image: Tensor) -> tuple[str, ...]:
        if self.layers is not None:
            check_layers(model, self.layers, "cell.defense.layers")
            return self.layers
        return stages(model, image)[-len(self.betas) :]

    def _tuning(self, epochs: int) -> Tuning:
        return Tuning(
            epochs=epochs,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            precision=self.precision,
            nesterov=True,
            schedule=lambda epoch: 1.0 if epoch < self.high_lr_epochs else self.low_lr / self.lr,
        )


def distillation(
    teacher: nn.Module, layers: Sequence[str], betas: Sequence[float], power: float, precision: str
) -> Loss:
    """Equation (3): cross-entropy + Σ β · attention loss. ``teacher``: frozen, in evaluation mode."""

    def loss(student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with autocast(images.device, precision):
            with captured(student, layers) as mine:
                logits = student(images)
            with captured(teacher, layers) as theirs, torch.no_grad():
                teacher(images)
        total = F.cross_entropy(logits.float(), labels)
        for layer, beta in zip(layers, betas, strict=True):
            total = total + beta * attention_loss(mine[layer], theirs[layer], power)
        return total

    return loss
