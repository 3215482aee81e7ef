"""The naive heuristic of the I-BAU paper's Section 4: adversarial training against universal perturbations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.defenses.tuning import Ending, Tuning, seeded, trainable_copy, tune, tuned_result
from adapters.defenses.universal_perturbation import UniversalPerturbation
from adapters.errors import UserError
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages
from ibau_defense import L2Ball
from ibau_defense.cuda import sent


class NaiveUap(Defense):
    """Alternate: a universal perturbation of the current model on the clean set; an epoch on images that carry it.

    The perturbation stays within the ℓ2 ball of the cell's ``radius``, as I-BAU's does. ``carriers`` is the share of
    a mini-batch's images it is added to. A round is one alternation.
    """

    name: ClassVar[str] = "naive_uap"
    uses: ClassVar[frozenset[str]] = frozenset({"clean_size", "radius"})

    rounds: Annotated[int, Field(ge=1)] = 5
    carriers: Annotated[float, Field(gt=0, le=1)] = 1.0
    passes: Annotated[int, Field(ge=1)] = 1
    """Passes over the clean set for one perturbation, at most."""
    fooling_rate: Annotated[float, Field(gt=0, le=1)] = 0.8
    deepfool_steps: Annotated[int, Field(ge=1)] = 50
    candidates: Annotated[int, Field(ge=2)] = 10
    """Classes DeepFool looks at, the likeliest ones."""
    overshoot: Annotated[float, Field(ge=0)] = 0.02
    images_per_step: Annotated[int, Field(ge=1)] = 1
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch_size: Annotated[int, Field(ge=2)] = 32
    batch_norm: Literal["train", "eval"] = "train"
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the training; perturbations are found in float32."""

    def work(self, images: int, classes: int) -> float:
        return float(images * self.rounds)

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        if context.radius is None:
            raise UserError("cell.radius: found none; expected a number of at least 0 for the defense naive_uap")
        tuned = trainable_copy(model)
        search = UniversalPerturbation(
            self.passes, self.fooling_rate, self.deepfool_steps, self.candidates, self.overshoot, self.images_per_step
        )
        tuning = Tuning(
            epochs=1, lr=self.lr, momentum=self.momentum, batch_size=self.batch_size, batch_norm=self.batch_norm,
            precision=self.precision,
        )  # fmt: skip
        ball, ending = L2Ball(context.radius), Ending("ok", None, 0)
        with seeded(context) as generator:
            for number in range(self.rounds):
                tuned.eval().requires_grad_(False)
                found = search.find(tuned, clean.images, ball, generator, context.out_of_time)
                tuned.requires_grad_(True)
                info = {"delta_norm": float(found.delta.norm()), "fooling_rate": found.fooling_rate}
                change = carrying(found.delta, self.carriers, generator)
                ending = tune(tuned, clean, tuning, context, generator, change=change, first_round=number, info=info)
                if ending.status != "ok":
                    reason = ending.reason and f"{ending.reason} (round {number + 1} of {self.rounds})"
                    return tuned_result(tuned, model, ending._replace(reason=reason))
        return tuned_result(tuned, model, ending)


def carrying(delta: Tensor, share: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A mini-batch whose images carry ``delta``, (1, C, H, W), each with probability ``share``; clipped to [0, 1]."""

    def change(images: Tensor) -> Tensor:
        chosen = torch.rand(len(images), generator=generator) < share
        return torch.where(sent(chosen, images.device)[:, None, None, None], (images + delta).clamp(0, 1), images)

    return change
