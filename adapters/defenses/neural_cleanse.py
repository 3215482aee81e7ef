"""Neural Cleanse (Wang et al., IEEE S&P 2019)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.defenses.inversion import Inversion, Network, Search
from adapters.defenses.masked_triggers import MaskedTriggers
from adapters.defenses.pictures import png
from adapters.defenses.trigger_synthesis import Synthesis, TriggerSynthesis
from adapters.protocols import DefenseContext, LabelledImages

SMALLEST = 1e-3
"""Pixels; a mask of less counts as this much, so that the logarithm of its norm is finite."""


class MaskSearch(TriggerSynthesis):
    """The settings of a search for masks and patterns (``adapters.defenses.inversion``)."""

    steps: Annotated[int, Field(ge=1)] = 60
    batches_per_step: Annotated[int, Field(ge=1)] = 8
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0)] = 0.1
    initial_cost: Annotated[float, Field(gt=0)] = 1e-3
    cost_factor: Annotated[float, Field(gt=1)] = 2.0
    patience: Annotated[int, Field(ge=1)] = 3
    early_stop: Annotated[int, Field(ge=1)] | None = 12
    """Steps without progress after which a class is done; null: never."""
    success: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Share of a step's images that must reach the class before its mask counts."""

    def work(self, images: int, classes: int) -> float:
        """Without early stops, of which nobody knows before."""
        return float(classes * self.steps * self.batches_per_step * min(self.batch_size, images))

    def search(self) -> Search:
        return Search(
            steps=self.steps,
            batches_per_step=self.batches_per_step,
            batch_size=self.batch_size,
            lr=self.lr,
            initial_cost=self.initial_cost,
            cost_factor=self.cost_factor,
            patience=self.patience,
            early_stop=self.early_stop,
            success=self.success,
        )


class NeuralCleanse(MaskSearch):
    """The smallest mask that sends every image to a class, for each class; small outliers are backdoors.

    Loss: cross-entropy + λ‖m‖₁ (equation (3) of the paper), λ by ``CostSchedule``.
    """

    name: ClassVar[str] = "neural_cleanse"

    log_norms: bool = False
    """Look for outliers among log‖m‖₁ instead of ‖m‖₁, which the paper takes.

    For norms of clean classes that differ by factors: their MAD is then so near their median that no class, however
    small its mask, has an index above 2 (``Outliers.index_of``); how many times smaller it is still stands out.
    """

    def synthesise(
        self, model: nn.Module, clean: LabelledImages, context: DefenseContext, generator: torch.Generator
    ) -> Synthesis:
        network = Network.of(model, self.precision, context.device)
        found = self.search().run(network, clean, _MaskNorm(), context, generator)
        if self.log_norms:
            return synthesis(found, found.norms.clamp_min(SMALLEST).log())
        return synthesis(found, found.norms)._replace(least=0.0)


class _MaskNorm:
    """‖m‖₁, and nothing else."""

    def size(self, triggers: MaskedTriggers) -> Tensor:
        return triggers.norms()

    def extra(self, network: Network, triggers: MaskedTriggers, batch: LabelledImages, classes: Tensor) -> Tensor:
        return torch.zeros(len(classes), device=classes.device)


def synthesis(found: Inversion, scores: Tensor) -> Synthesis:
    """What a search found, judged by ``scores`` (K,)."""

    def pictures(label: int) -> dict[str, str]:
        return {"mask": png(found.triggers.masks[label]), "pattern": png(found.triggers.patterns[label])}

    figures = {"norms": found.norms, "success_rates": found.rates, "steps": found.steps}
    return Synthesis(scores, found.triggers.stamp, figures, pictures, found.finished)
