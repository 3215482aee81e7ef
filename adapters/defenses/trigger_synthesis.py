"""What Neural Cleanse, DeepInspect and TABOR share: a score a class, outliers among them, all of those unlearned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.defenses.mad import Outliers, low_outliers
from adapters.defenses.tuning import Tuning, frozen_copy, seeded, trainable_copy, tune, tuned_result
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages
from ibau_defense.cuda import sent

Stamp = Callable[[Tensor, Tensor], Tensor]
"""(images (n, C, H, W) in [0, 1], classes (n,)) to the images, each with the trigger of its class."""


class Synthesis(NamedTuple):
    """Synthesised triggers. ``scores``: (K,), low is suspicious. ``figures``: other (K,) figures for the record.

    ``pictures(label)``: what the trigger of a class looks like, as PNG data addresses. ``finished``: False where the
    time ran out. ``least``: a value below which no score can fall, if there is one.
    """

    scores: Tensor
    stamp: Stamp
    figures: Mapping[str, Tensor]
    pictures: Callable[[int], Mapping[str, str]]
    finished: bool
    least: float | None = None


class TriggerSynthesis(Defense):
    """Synthesise a trigger for every class, flag the outliers by MAD, unlearn every flagged trigger.

    Unlearning (Wang et al. 2019, Section VI-B): training on the clean set, where each image carries one of the
    flagged triggers, drawn anew each time, with probability ``unlearning_share``, and keeps its true label. Round 0
    is the synthesis, the others are epochs of unlearning.
    """

    threshold: Annotated[float, Field(gt=0)] = 2.0
    """Anomaly index above which a class is flagged."""
    unlearning_epochs: Annotated[int, Field(ge=1)] = 10
    unlearning_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    unlearning_lr: Annotated[float, Field(gt=0)] = 0.01
    unlearning_batch_size: Annotated[int, Field(ge=2)] = 32
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def synthesise(
        self, model: nn.Module, clean: LabelledImages, context: DefenseContext, generator: torch.Generator
    ) -> Synthesis:
        """A trigger for every class of ``model``, which is frozen and in evaluation mode."""
        raise NotImplementedError

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        with seeded(context) as generator:
            found = self.synthesise(frozen_copy(model), clean, context, generator)
            outliers = low_outliers(found.scores, self.threshold)
            details = _details(found, outliers)
            untouched = copy.deepcopy(model).eval()
            context.on_round(untouched, {"index": 0, "phase": "synthesis", "flagged": list(outliers.flagged)})
            if not found.finished or context.out_of_time():
                return DefenseResult(untouched, "timeout", "stopped while triggers were synthesised", details)
            if not outliers.flagged:
                return DefenseResult(untouched, "no_trigger_detected", self._why_none(found, outliers), details)
            tuned = trainable_copy(model)
            change = stamped(found.stamp, outliers.flagged, self.unlearning_share, generator)
            ending = tune(
                tuned, clean, self._tuning(), context, generator, change=change, first_round=1,
                info={"phase": "unlearning"},
            )  # fmt: skip
        return tuned_result(tuned, model, ending, details)

    def _why_none(self, found: Synthesis, outliers: Outliers) -> str:
        why = f"no class lies below the median with an anomaly index above {self.threshold:g}"
        if found.least is None or (index := outliers.index_of(found.least)) > self.threshold:
            return why
        return f"{why}; a score of {found.least:g}, the least there is, would have one of {index:.2f}"

    def _tuning(self) -> Tuning:
        return Tuning(
            epochs=self.unlearning_epochs,
            lr=self.unlearning_lr,
            batch_size=self.unlearning_batch_size,
            precision=self.precision,
        )


def stamped(
    stamp: Stamp, classes: tuple[int, ...], share: float, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """A mini-batch in which about ``share`` of the images carry a trigger, each one drawn from those of ``classes``."""

    def change(images: Tensor) -> Tensor:
        chosen = torch.rand(len(images), generator=generator) < share
        labels = torch.tensor(classes)[torch.randint(len(classes), (len(images),), generator=generator)]
        rows = sent(chosen.nonzero().flatten(), images.device)
        if len(rows) == 0:
            return images
        changed = images.clone()
        with torch.no_grad():
            changed[rows] = stamp(images[rows], sent(labels, images.device)[rows])
        return changed

    return change


def _details(found: Synthesis, outliers: Outliers) -> dict[str, Any]:
    figures = {name: [round(float(value), 6) for value in values] for name, values in found.figures.items()}
    return {
        "flagged": list(outliers.flagged),
        "anomaly_indices": [round(float(value), 6) for value in outliers.indices],
        "scores": [round(float(value), 6) for value in found.scores],
        **figures,
        "triggers": {str(label): dict(found.pictures(label)) for label in outliers.flagged},
    }
