"""Implicit Backdoor Adversarial Unlearning: the rounds of Algorithm 1."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ibau_defense.ascent import AscentResult, ascend
from ibau_defense.balls import Ball, L2Ball
from ibau_defense.clean_set import check_clean_set, check_tensors
from ibau_defense.cuda import computing, graphs_for, micro_batch, now, precision
from ibau_defense.diagnostics import RoundReport, StepReport, summarise
from ibau_defense.graphs import Tally
from ibau_defense.guard import Guard, Verdict, hold_back
from ibau_defense.implicit import Response, response_product
from ibau_defense.objective import Network, Objective, Theta, UniversalLoss, value_and_gradients
from ibau_defense.parallel import ranks_from
from ibau_defense.probe import probe
from ibau_defense.recipes import RECIPES, Recipe, Sharp
from ibau_defense.starts import Search, Window, ascend_from_many, harm_weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


FEWEST_RIGHT, FEWEST_LOOKED_AT = 0.5, 5
"""Under that accuracy of the model on that many held-back clean images their labels are probably not its own."""


@dataclass(frozen=True)
class Unlearned:
    """What ``IBAU.unlearn`` returns.

    Attributes:
        model: the unlearned copy, in evaluation mode.
        rounds: one report a round.
        status: ``ok``, ``diverged`` (the model is the last sound one) or ``timeout`` (what there was by then).
        reason: why, where the status is not ``ok``.
    """

    model: nn.Module
    rounds: tuple[RoundReport, ...]
    status: str = "ok"
    reason: str | None = None


OnRound = Callable[[nn.Module, RoundReport], None]


@dataclass(frozen=True)
class IBAU:
    """Removes backdoors from a classifier with a small clean set (Zeng et al., ICLR 2022).

        θ* = argmin_θ max_{‖δ‖ ≤ C_δ} 1/n Σᵢ L(f_θ(xᵢ + δ), yᵢ)                                     (1)

    Each outer step descends the implicit hypergradient of equation (2), ∇₂H + (∇δ)ᵀ∇₁H, with ∇δ from equation (3).

    Attributes:
        ball: ‖δ‖ ≤ C_δ, pixels in [0, 1]; the paper's is ℓ2 of radius 10.
        recipe: a name in ``RECIPES`` or a ``Recipe``.
        rounds: passes over the clean set; None for the recipe's.
        micro_batch: most images in one pass; bounds memory. None for all at once, on a CUDA device for what fits into
            the memory that is free.
        cuda_graphs: on a CUDA device, record passes of recurring shapes and replay them (``ibau_defense.graphs``).
        tally: of the images that go through the network, told of those that hooks on ``model`` do not see.
        seed: of the images that carry δ and of shuffling.
        group: processes that share the images of every mini-batch: a ``torch.distributed`` process group, or
            ``"world"`` for the default one. All of them call ``unlearn`` with the same model, images and seed, each on
            its own device, and all return the same model; ``on_round`` is called on every rank. None: this process
            alone, whether or not ``torch.distributed`` is initialised.

    Example:
        >>> cleaned = IBAU(ball=L2Ball(10.0), rounds=1).unlearn(model, images, labels)  # doctest: +SKIP
        >>> cleaned.model, cleaned.rounds  # doctest: +SKIP
    """

    ball: Ball = field(default_factory=lambda: L2Ball(10.0))
    recipe: str | Recipe = "fast"
    rounds: int | None = None
    micro_batch: int | None = None
    cuda_graphs: bool = True
    tally: Tally | None = None
    seed: int = 0
    group: ProcessGroup | Literal["world"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Ball):
            raise ValueError(f"ball: found {self.ball!r}; expected a ball, L2Ball(10.0) for one")
        for name, least in (("rounds", self.rounds), ("micro_batch", self.micro_batch)):
            if least is not None and not (_is_whole(least) and least >= 1):
                raise ValueError(f"{name}: found {least!r}; expected a whole number of at least 1")
        if not _is_whole(self.seed):
            raise ValueError(f"seed: found {self.seed!r}; expected a whole number")
        if not isinstance(cast(object, self.recipe), str | Recipe):
            raise ValueError(f"recipe: found {self.recipe!r}; expected a Recipe or one of: {', '.join(RECIPES)}")

    def settings(self) -> Recipe:
        """The recipe with this instance's ``rounds``."""
        if isinstance(self.recipe, str) and self.recipe not in RECIPES:
            raise ValueError(f"recipe: unknown name {self.recipe!r}; expected one of: {', '.join(RECIPES)}")
        recipe = RECIPES[self.recipe] if isinstance(self.recipe, str) else self.recipe
        return recipe if self.rounds is None else replace(recipe, rounds=self.rounds)

    def unlearn(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        on_round: OnRound | None = None,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> Unlearned:
        """Unlearn on a clean set; ``model`` itself is left exactly as it was.

        Warns, where the recipe has a guard, if the model gets less than half of the held-back clean images right.

        Args:
            model: (n, C, H, W) float in [0, 1] to logits (n, num_classes); parameters on the images' device, of their
                dtype. Frozen ones (``requires_grad`` False) stay as they are. A plain module: no ``DataParallel``, no
                TorchScript.
            images: (n, C, H, W) float in [0, 1].
            labels: (n,) int64.
            on_round: called with a copy of the current model, in evaluation mode, after each round.
            out_of_time: asked between outer steps; True stops with what there is.

        Raises:
            ValueError: no images, or a share of carriers that leaves some mini-batch without any image carrying δ:
                such a step would train on clean images only and look like unlearning. Images or labels of another
                type, not as many of them, pixels that are NaN or outside [0, 1]; a model that they do not fit
                (``ibau_defense.probe``). With ``group``, also where the ranks' models or images differ.
            RuntimeError: called under ``torch.inference_mode``.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError("unlearn: called under torch.inference_mode(), where nothing has a gradient")
        check_tensors(images, labels)
        with computing(precision(images.device, reduced=self.settings().autocast), images.device):
            run = _Run(self, self.settings(), model, images, labels)
            reports: list[RoundReport] = []
            for index in range(run.recipe.rounds):
                started = now(images.device)
                steps, undone = run.round(out_of_time)
                reports.append(summarise(index, steps, undone, now(images.device) - started))
                if on_round:
                    on_round(run.model(), reports[-1])
                if run.stopped:
                    break
            run.finish()
            return Unlearned(run.model(), tuple(reports), run.status, run.reason)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral)


def _warn_of_labels(accuracy: float, count: int) -> None:
    """The guard compares with the model on the same labels: it sees no harm where these are wrong."""
    if accuracy < FEWEST_RIGHT and count >= FEWEST_LOOKED_AT:
        warnings.warn(
            f"labels: the model gets {accuracy:.0%} of {count} held-back clean images right; expected most of them."
            " Are these its classes' numbers, and are the images as it was trained on them?",
            stacklevel=4,
        )


class _Run:
    """The state of one call: the working network, the optimiser and the random generator."""

    def __init__(self, ibau: IBAU, recipe: Recipe, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.ibau, self.recipe, self._source = ibau, recipe, model
        policy = precision(images.device, reduced=recipe.autocast)
        self.ranks = ranks_from(ibau.group)
        if self.ranks:
            self.ranks.check_same("model", tuple(parameter.detach() for parameter in model.parameters()))
            self.ranks.check_same("images, labels", [images, labels])
        check_clean_set(images, labels)  # after the ranks have the same one: all of them refuse it, or none
        fits = bool(len(images)) and probe(model, images, labels, channels_last=recipe.channels_last)
        self.network = Network(
            model,
            autocast=policy.autocast,
            channels_last=fits,
            twice=recipe.implicit and recipe.curvature == "exact" == recipe.mixed and not recipe.autocast,
        )
        self.generator = torch.Generator().manual_seed(ibau.seed)
        self.parameters = self.network.parameters
        self.taken, self.descended, self.sharp = 0, 0, cast("Sharp | None", None)
        self.moved = False
        self._sound = (0, 0)  # both at the guard's last good check
        optimizer = torch.optim.Adam if recipe.outer_optimizer == "adam" else torch.optim.SGD
        self.optimizer = optimizer(self.parameters, lr=recipe.outer_lr)
        self.status, self.reason = "ok", cast("str | None", None)
        self.images, self.labels, self.guard = images.detach(), labels, cast("Guard | None", None)
        held: Tensor | None = None
        if recipe.guard and len(images):
            kept, held = (index.to(images.device) for index in hold_back(recipe.guard, labels, self.generator))
            self.images, self.labels = self.images[kept], labels[kept]
        recipe.check_images(len(self.images))
        self.search = Search(recipe.starts, self.images.shape[1:], self.generator) if recipe.starts else None
        largest = max(recipe.batch_size or len(self.images), self.search.largest if self.search else 0)
        sample = UniversalLoss(self.network, self.images[:2], self.labels[:2], clip=recipe.clip)
        self.micro_batch = ibau.micro_batch or micro_batch(sample, largest)
        if recipe.guard and held is not None:
            self.guard = Guard(
                recipe.guard, self.network, self.optimizer, images.detach()[held], labels[held], self.ranks,
                micro_batch=self.micro_batch,
            )  # fmt: skip
            _warn_of_labels(self.guard.before.accuracy, len(held))
        self.network.graphs = graphs_for(images.device, policy, ibau.tally) if ibau.cuda_graphs else None

    @property
    def stopped(self) -> bool:
        return self.status != "ok"

    def model(self) -> nn.Module:
        """A copy of the caller's module with the unlearned parameters."""
        copied = copy.deepcopy(self._source).eval()
        copied.load_state_dict(self.network.module.state_dict())
        return copied

    def round(self, out_of_time: Callable[[], bool]) -> tuple[list[StepReport], list[StepReport]]:
        """One pass over the clean set, one outer step a mini-batch (or ``outer_steps`` of them).

        Steps that the guard undoes are taken again at its smaller rate; one δ, or one bank, a round stays for them.

        Returns:
            The steps that stand, and those that were undone.
        """
        batches = list(self._batches())
        first = self._loss(*batches[0], penalty=self.recipe.penalty)
        shared = self._ascend(batches) if self.recipe.delta_per == "round" else None
        planned = self.recipe.outer_steps or len(batches)
        steps: list[StepReport] = []
        undone: list[StepReport] = []
        while len(steps) < planned and not self.stopped:
            if self._agreed(out_of_time()):
                self._stop("timeout", "the time limit was reached before all rounds were done")
                if self.guard and self.taken > self._sound[0]:  # the steps since its last look; none come after
                    self._look(steps, undone, to_come=0.0)
                break
            batch = batches[len(steps) % len(batches)]
            step = self._outer_step(batch, shared or self._ascend([batch]), first, self._progress(planned))
            steps.append(step)
            self.taken += 1
            self._watch(steps, undone, planned)
        return steps, undone

    def _agreed(self, flag: bool) -> bool:
        return self.ranks.any(flag, self.images.device) if self.ranks else flag

    def _stop(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason

    def finish(self) -> None:
        """Say so where no step was taken, or the accuracy that was lost on the way has not come back."""
        if not self.stopped and not self.moved:
            self._stop("diverged", "no hypergradient was finite; no step was taken")
        if self.guard and not self.stopped and self.guard.lost_too_much:
            before = self.guard.before.accuracy
            self._stop(
                "diverged",
                f"the accuracy on held-back clean images ended {self.guard.lost:.3f} under the {before:.3f} before",
            )

    def _watch(self, steps: list[StepReport], undone: list[StepReport], planned: int) -> None:
        """Stop, or have the guard undo, what is not sound."""
        if self.guard is None:
            if not steps[-1].finite:
                self._stop("diverged", "a hypergradient was not finite; its step was not taken")
            return
        over = len(steps) == planned
        if len(steps) % self.guard.settings.every and not over and steps[-1].finite:
            return
        verdict = self._look(steps, undone, self.recipe.to_come(self._progress(planned)))
        if self.guard.exhausted:
            self._stop(
                "diverged",
                f"{self.guard.settings.retries + 1} times in a row the outer steps raised the clean loss on held-back "
                f"images from {self.guard.before.loss:.3g} to {verdict.loss:.3g} or took the accuracy from "
                f"{self.guard.before.accuracy:.3f} to {verdict.accuracy:.3f}; the model is the last sound one",
            )

    def _progress(self, planned: int) -> float:
        """Share of all outer steps that are done, in [0, 1]."""
        return self.taken / (planned * self.recipe.rounds)

    def _look(self, steps: list[StepReport], undone: list[StepReport], to_come: float) -> Verdict:
        """Have the guard check; steps that it undoes go from ``steps`` to ``undone``."""
        assert self.guard is not None
        verdict = self.guard.check(to_come)
        if verdict.sound:
            self._sound = (self.taken, self.descended)
        else:
            count = self.taken - self._sound[0]
            undone.extend(steps[-count:])
            del steps[-count:]
            self.taken, self.descended = self._sound
        return verdict

    def _outer_step(
        self, batch: tuple[Tensor, Tensor], ascent: AscentResult, first: UniversalLoss, progress: float
    ) -> StepReport:
        """Lines 6 to 8 of Algorithm 1, after a share ``progress`` of all outer steps."""
        started = time.perf_counter()
        recipe, delta = self.recipe, ascent.delta
        carriers = self._carriers(len(batch[1]), progress)
        outer = self._loss(*batch, carriers=carriers, assignment=self._assignment(ascent, len(batch[1])))
        theta = self.network.theta
        loss, pull, direct = value_and_gradients(outer, delta, theta, wrt_delta=recipe.implicit, wrt_theta=True)
        direct = cast(Theta, direct)
        implicit, solution = None, None
        if recipe.implicit:
            inner = first if recipe.response_images == "first_batch" else self._inner(outer)
            response = Response(
                recipe.solver, recipe.curvature, recipe.mixed, self.ibau.ball if recipe.boundary else None,
                recipe.positive,
            )  # fmt: skip
            implicit, solution = response_product(inner, delta, theta, cast(Tensor, pull), response)
        report = StepReport.measure(loss, ascent, self.ibau.ball, direct, implicit, solution)
        if report.finite:
            self.moved = True
            weight = 1.0
            if recipe.implicit_share is not None and report.implicit_norm > 0:
                weight = recipe.implicit_share * report.direct_norm / report.implicit_norm
            total = direct if implicit is None else tuple(a + weight * b for a, b in zip(direct, implicit, strict=True))
            slower = self.guard.rate if self.guard else 1.0
            if self.sharp and recipe.phase(progress) == 0:
                self._move(total, self.sharp.step * slower)
            else:
                self._descend(total, recipe.rate(progress, self.descended) * slower)
                self.descended += 1
        return replace(report, seconds=time.perf_counter() - started)

    def _inner(self, outer: UniversalLoss) -> UniversalLoss:
        """The objective whose stationarity the response differentiates."""
        images, labels, assignment = outer.images, outer.labels, outer.assignment
        if self.recipe.response_images == "carriers" and outer.carriers is not None:
            images, labels = images[outer.carriers], labels[outer.carriers]
            assignment = None if assignment is None else assignment[outer.carriers]
        return self._loss(images, labels, penalty=self.recipe.penalty, assignment=assignment)

    @torch.no_grad()
    def _move(self, gradient: Theta, share: float) -> None:
        """A step along −gradient of a length that is this share of ‖θ‖."""
        norms = torch.stack([torch.stack([x.norm() for x in group]).norm() for group in (self.parameters, gradient)])
        scale = share * norms[0] / norms[1].clamp(min=torch.finfo(norms.dtype).tiny)
        for parameter, piece in zip(self.parameters, gradient, strict=True):
            parameter.sub_(scale * piece)

    def _descend(self, gradient: Theta, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for parameter, piece in zip(self.parameters, gradient, strict=True):
            parameter.grad = piece
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _ascend(self, batches: list[tuple[Tensor, Tensor]]) -> AscentResult:
        recipe, theta = self.recipe, self.network.theta
        if self.search:
            return self._many(self.search)
        objectives: list[Objective] = []
        for images, labels in batches:
            if recipe.ascent_labels == "predicted":
                labels = self._predicted(images, labels)
            objectives.append(self._loss(images, labels, penalty=recipe.penalty))
        settings = recipe.ascent if recipe.ascent.steps else replace(recipe.ascent, steps=len(batches))
        start = torch.zeros_like(self.images[0])
        return ascend(objectives, theta, start, self.ibau.ball, settings)

    @torch.no_grad()
    def _predicted(self, images: Tensor, labels: Tensor) -> Tensor:
        """The model's own labels; those of other ranks' images stay as they are and go unread."""
        own = self.ranks.share(len(labels)) if self.ranks else slice(0, len(labels))
        labels, most = labels.clone(), self.micro_batch or len(labels)
        for start in range(own.start, own.stop, most):
            part = slice(start, min(start + most, own.stop))
            labels[part] = self.network(images[part], self.network.theta).argmax(dim=1)
        return labels

    def _many(self, search: Search) -> AscentResult:
        """This round's bank; harm all over the image changes how the outer steps go (``Sharp``).

        Harm is measured on what the guard holds back."""

        held = (self.guard.images, self.guard.labels) if self.guard else (self.images, self.labels)
        draw, look = partial(self._draw, self.images, self.labels), partial(self._draw, *held)

        def climb(windows: list[Window], each: int, enough: float) -> AscentResult:
            return ascend_from_many(
                self.network, draw, search.shape, self.network.theta, self.ibau.ball, search.settings, windows,
                look=look, each=each, enough=enough, clip=self.recipe.clip, micro_batch=self.micro_batch,
                ranks=self.ranks,
            )  # fmt: skip

        bank, sharp = search.bank(climb), self.recipe.sharp
        if sharp and not self.sharp and search.harm is not None and float(search.harm.median()) > sharp.harm:
            self.sharp = sharp
            self.recipe = replace(self.recipe, carriers=sharp.carriers, outer_steps=sharp.outer_steps)
        return bank

    def _loss(self, images: Tensor, labels: Tensor, **changes: Any) -> UniversalLoss:
        return UniversalLoss(
            self.network, images, labels, clip=self.recipe.clip, micro_batch=self.micro_batch,
            ranks=self.ranks, **changes,
        )  # fmt: skip

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.images)
        size = self.recipe.batch_size or count
        order = torch.randperm(count, generator=self.generator) if self.recipe.shuffle else torch.arange(count)
        order = order.to(self.images.device)
        for start in range(0, count, size):
            index = order[start : start + size]
            yield self.images[index], self.labels[index]

    def _draw(self, images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(labels), (count,), generator=self.generator).to(images.device)
        return images[index], labels[index]

    def _assignment(self, ascent: AscentResult, count: int) -> Tensor | None:
        """Which δ of a bank each image would carry: the harmful ones more often."""
        if ascent.harm is None:
            return None
        drawn = torch.multinomial(harm_weights(ascent), count, replacement=True, generator=self.generator)
        return drawn.to(self.images.device)

    def _carriers(self, count: int, progress: float) -> Tensor | None:
        if self.recipe.phases == (1.0,):
            return None
        chosen = torch.randperm(count, generator=self.generator)[: self.recipe.carried(count, progress)]
        mask = torch.zeros(count, dtype=torch.bool)
        mask[chosen] = True
        return mask.to(self.images.device)
