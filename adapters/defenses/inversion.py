"""Reverse engineering of a trigger for every class at once: Neural Cleanse's optimisation, open to other objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.defenses.cost_schedule import CostSchedule
from adapters.defenses.masked_triggers import MaskedTriggers
from adapters.defenses.tuning import autocast
from adapters.protocols import DefenseContext, LabelledImages
from adapters.training_step import TrainingStep
from ibau_defense.cuda import sent


class Objective(Protocol):
    """What a search adds to the cross-entropy towards the class."""

    def size(self, triggers: MaskedTriggers) -> Tensor:
        """(k,): what the schedule's weight multiplies, and what "smallest trigger" means."""
        ...

    def extra(self, network: Network, triggers: MaskedTriggers, batch: LabelledImages, classes: Tensor) -> Tensor:
        """(k,): further terms, as they are. ``classes``: (k,) the classes of ``triggers``' rows."""
        ...


class Inversion(NamedTuple):
    """What a search found for each of K classes.

    ``norms``: (K,) ℓ1 norms of the masks, in pixels; ``rates``: (K,) share of the last step's images that the trigger
    sent to the class, when it was kept; ``steps``: (K,) int64; ``finished``: False where the time ran out.
    """

    triggers: MaskedTriggers
    norms: Tensor
    rates: Tensor
    steps: Tensor
    finished: bool


@dataclass(frozen=True)
class Network:
    """A frozen model and how to ask it: at most ``limit`` images at a time."""

    model: nn.Module
    precision: Literal["bfloat16", "float32"]
    limit: int

    def logits(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, num_classes) float32."""
        with autocast(images.device, self.precision):
            logits: Tensor = self.model(images.contiguous(memory_format=torch.channels_last))
        return logits.float()

    @classmethod
    def of(cls, model: nn.Module, precision: Literal["bfloat16", "float32"], device: torch.device) -> Network:
        """On the CPU larger batches than 128 images leave the cache."""
        return cls(model, precision, 128 if device.type == "cpu" else 8192)


@dataclass(frozen=True)
class Search:
    """Settings of the search; Adam on tanh-parametrised masks and patterns.

    A step is ``batches_per_step`` mini-batches. Images of the class itself are left out of its own search. All
    classes see the same mini-batches and start from the same mask and pattern, so that their norms differ by the class
    alone.
    """

    steps: int
    batches_per_step: int
    batch_size: int
    lr: float
    initial_cost: float
    cost_factor: float
    patience: int
    early_stop: int | None
    success: float

    def run(
        self, network: Network, clean: LabelledImages, objective: Objective, context: DefenseContext,
        generator: torch.Generator,
    ) -> Inversion:  # fmt: skip
        """For each class the smallest trigger that sent at least ``success`` of a step's images there.

        A class for which none did keeps its last trigger. Stops after the mini-batch in which the time runs out.
        """
        state = _State(context.num_classes, clean.images, self.lr, generator)
        schedule = CostSchedule(
            context.num_classes, self.initial_cost, self.cost_factor, self.patience, self.early_stop
        )
        stream = _Stream(clean, self.batch_size, generator)
        step = _descent(network, state, objective, context)
        finished = True
        for _ in range(self.steps):
            classes = schedule.active.nonzero().flatten().to(clean.images.device)
            if len(classes) == 0:
                break
            weights = schedule.weights.to(clean.images.device)[classes]
            hits, seen = torch.zeros(2, len(classes), device=clean.images.device)
            for _ in range(self.batches_per_step):
                batch = stream.next()
                right, asked = step(*batch, classes, weights)
                state.optimizer.step()
                hits, seen = hits + right, seen + asked
                finished = not context.out_of_time()
                if not finished:
                    break
            rates = hits / seen.clamp_min(1)
            success = torch.zeros(context.num_classes, dtype=torch.bool)
            success[classes.cpu()] = (rates >= self.success).cpu()
            state.keep(classes, rates, self.success, objective)
            schedule.update(success, state.best_size.cpu())
            if not finished:
                break
        return state.found(finished)


class _Stream:
    """Mini-batches without end, reshuffled after each pass; every one of full size unless the set is smaller."""

    def __init__(self, data: LabelledImages, size: int, generator: torch.Generator) -> None:
        self._data, self._size, self._generator = data, min(size, len(data.labels)), generator
        self._order = torch.empty(0, dtype=torch.int64)

    def next(self) -> LabelledImages:
        if len(self._order) < self._size:
            self._order = torch.randperm(len(self._data.labels), generator=self._generator)
        index, self._order = self._order[: self._size], self._order[self._size :]
        index = sent(index, self._data.images.device)
        return LabelledImages(self._data.images[index], self._data.labels[index])


class _State:
    """Masks and patterns in search, and the best of each class so far."""

    def __init__(self, classes: int, images: Tensor, lr: float, generator: torch.Generator) -> None:
        _, channels, height, width = images.shape
        mask = torch.rand(1, 1, height, width, generator=generator).to(images.device)
        pattern = torch.rand(1, channels, height, width, generator=generator).to(images.device)
        self.mask = _atanh(mask).repeat(classes, 1, 1, 1).requires_grad_()
        self.pattern = _atanh(pattern).repeat(classes, 1, 1, 1).requires_grad_()
        fused = images.device.type == "cuda"
        self.optimizer = torch.optim.Adam([self.mask, self.pattern], lr=lr, betas=(0.5, 0.9), fused=fused)
        self.best = MaskedTriggers(_unit(self.mask).detach(), _unit(self.pattern).detach())
        self.best_size = torch.full((classes,), float("inf"), device=images.device)
        self.rates = torch.zeros(classes, device=images.device)
        self.steps = torch.zeros(classes, dtype=torch.int64)

    def triggers(self, rows: Tensor) -> MaskedTriggers:
        return MaskedTriggers(_unit(self.mask[rows]), _unit(self.pattern[rows]))

    @torch.no_grad()
    def keep(self, classes: Tensor, rates: Tensor, success: float, objective: Objective) -> None:
        now = self.triggers(classes)
        size = objective.size(now)
        known = self.best_size[classes].isfinite()
        better = torch.where(rates >= success, size < self.best_size[classes], ~known)
        rows = classes[better]
        self.best.masks[rows], self.best.patterns[rows] = now.masks[better], now.patterns[better]
        self.rates[rows] = rates[better]
        self.best_size[rows] = torch.where(rates >= success, size, float("inf"))[better]
        self.steps[classes.cpu()] += 1

    def found(self, finished: bool) -> Inversion:
        return Inversion(self.best, self.best.norms(), self.rates, self.steps, finished)


def _descent(network: Network, state: _State, objective: Objective, context: DefenseContext) -> TrainingStep:
    """(images, labels, classes (k,), weights (k,)) to (k,) images sent to the class and (k,) images asked; leaves the
    gradients of masks and patterns."""
    searched = [state.mask, state.pattern]

    def work(images: Tensor, labels: Tensor, classes: Tensor, weights: Tensor) -> Sequence[Tensor]:
        batch = LabelledImages(images, labels)
        each = max(1, network.limit // len(labels))
        counts = []
        for rows, weight in zip(classes.split(each), weights.split(each), strict=True):
            triggers = state.triggers(rows)
            loss, right, asked = _towards(network, triggers, batch, rows)
            loss = loss + weight * objective.size(triggers) + objective.extra(network, triggers, batch, rows)
            torch.autograd.backward(loss.sum(), inputs=searched)
            counts.append((right, asked))
        return [torch.cat(one) for one in zip(*counts, strict=True)]

    return TrainingStep(work, searched, state.mask.device, context.passes)


def _towards(
    network: Network, triggers: MaskedTriggers, batch: LabelledImages, classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(k,) mean cross-entropy towards each class, (k,) hits and (k,) images, over images of other classes."""
    k, n = len(classes), len(batch.labels)
    rows = torch.arange(k, device=classes.device).repeat_interleave(n)
    logits = network.logits(triggers.stamp(batch.images.repeat(k, 1, 1, 1), rows))
    goals = classes.repeat_interleave(n)
    other = (batch.labels.repeat(k) != goals).float().view(k, n)
    losses = F.cross_entropy(logits, goals, reduction="none").view(k, n)
    hits = (logits.argmax(dim=1) == goals).float().view(k, n)
    return (losses * other).sum(1) / other.sum(1).clamp_min(1), (hits * other).sum(1).detach(), other.sum(1)


def _unit(raw: Tensor) -> Tensor:
    return torch.tanh(raw) / 2 + 0.5


def _atanh(unit: Tensor) -> Tensor:
    return torch.atanh((unit - 0.5) * (2 - 1e-4))
