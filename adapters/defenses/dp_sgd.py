"""Differentially private training on the poisoned data (Du, Jia, Song, 2019), through opacus."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.defenses.group_norm import replace_batch_norm
from adapters.defenses.sample_gradients import (
    Precision,
    Way,
    backward_each,
    choose_way,
    physical_batch,
    wrap,
)
from adapters.defenses.tuning import seeded
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages, TrainingContext, TrainingData
from ibau_defense.cuda import sent

if TYPE_CHECKING:
    from opacus.accountants import RDPAccountant
    from opacus.optimizers import DPOptimizer


class DpSgd(Defense):
    """A network of the victim's architecture, trained from scratch on the poisoned data with clipped, noisy gradients.

    The only defense that sees the training data, poison included; it uses no clean set. BatchNorm is replaced by
    GroupNorm. Batches are Poisson samples, as the privacy analysis assumes; ε is the RDP accountant's at ``delta``.
    Whatever the precision of the network's passes, gradients are clipped and noise is added in float32, so that the
    bound on an image's influence, and with it ε, is exact. A round is an epoch.
    """

    name: ClassVar[str] = "dp_sgd"
    uses: ClassVar[frozenset[str]] = frozenset()
    needs_training_data: ClassVar[bool] = True

    noise_multiplier: Annotated[float, Field(gt=0)] = 1.5
    """The noise's standard deviation over ``max_grad_norm``: the paper's 50 on CIFAR-10, 1.5 on GTSRB."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images in a batch on average."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    grad_sample: Literal["auto", "hooks", "ew"] = "auto"
    """How opacus computes the gradient of each image: ``auto`` takes the first that works with the network."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the network's passes: ``auto`` is bfloat16 where ``grad_sample`` can, which ``ew`` cannot."""

    def work(self, images: int, classes: int) -> float:
        return float(images * self.epochs)

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        if not isinstance(context, TrainingContext):
            raise TypeError("dp_sgd needs a TrainingContext, with the data the victim was trained on")
        data = TrainingData(*(one.to(context.device) for one in context.training_data))
        with seeded(context) as generator:
            untrained = replace_batch_norm(context.untrained()).to(context.device)
            trial = _batch(data, torch.arange(2, device=context.device))
            way = choose_way(untrained, *trial, self.grad_sample, self.precision)
            training = _training(self, untrained, way, len(data.labels), context)
            status, reason = self._train(training, data, context, generator)
        details = {
            "epsilon": training.epsilon(self.delta),
            "delta": self.delta,
            "steps": sum(steps for _, _, steps in training.accountant.history),
            "grad_sample": way.mode,
            "precision": way.precision,
        }
        return DefenseResult(untrained.eval() if status == "diverged" else training.plain(), status, reason, details)

    def _train(
        self, training: Training, data: TrainingData, context: DefenseContext, generator: torch.Generator
    ) -> tuple[str, str | None]:
        for epoch in range(self.epochs):
            training.network.train()
            loss = torch.zeros(())
            for _ in range(training.steps):
                chosen = (torch.rand(len(data.labels), generator=generator) < training.rate).nonzero().flatten()
                loss = training.step(data, sent(chosen, context.device))
                if context.out_of_time():
                    break
            info = {"index": epoch, "loss": float(loss), "epsilon": training.epsilon(self.delta)}
            context.on_round(training.plain(), info)
            if not all(bool(one.isfinite().all()) for one in training.network.parameters()):
                return "diverged", "a parameter was not finite"
            if context.out_of_time():
                return "timeout", f"stopped in epoch {epoch + 1} of {self.epochs}"
        return "ok", None


class Training(NamedTuple):
    """``rate``: the share of the data in a batch, on average; ``steps`` in an epoch. ``network``: opacus' module.

    ``part``: how many images' gradients are held at once.
    """

    untrained: nn.Module
    network: Any
    optimizer: DPOptimizer
    accountant: RDPAccountant
    rate: float
    steps: int
    precision: Precision
    part: int

    def step(self, data: TrainingData, chosen: Tensor) -> Tensor:
        """One noisy step on the examples ``chosen``, (n,) int64; returns the last part's mean loss (0 of none).

        Nothing here waits for a device.
        """
        loss = torch.zeros(())
        parts = [part for part in chosen.split(self.part) if len(part)]
        for number, part in enumerate(parts, start=1):
            self.optimizer.signal_skip_step(do_skip=number < len(parts))
            loss = backward_each(self.network, *_batch(data, part), self.precision)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if not parts:
            for parameter in self.network.parameters():
                parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss

    def plain(self) -> nn.Module:
        """A copy of the network as it is now, in evaluation mode, free of opacus' hooks and gradients."""
        copied = copy.deepcopy(self.untrained).eval()
        copied.load_state_dict(self.network._module.state_dict())
        return copied

    def epsilon(self, delta: float) -> float:
        return float(self.accountant.get_epsilon(delta)) if self.accountant.history else 0.0


def _training(defense: DpSgd, untrained: nn.Module, way: Way, size: int, context: DefenseContext) -> Training:
    from opacus.accountants import RDPAccountant
    from opacus.optimizers import DPOptimizer

    rate = min(1.0, defense.batch_size / size)
    network = wrap(copy.deepcopy(untrained).train(), way.mode)
    optimizer = DPOptimizer(
        torch.optim.SGD(network.parameters(), lr=defense.lr, momentum=defense.momentum),
        noise_multiplier=defense.noise_multiplier,
        max_grad_norm=defense.max_grad_norm,
        expected_batch_size=max(1, round(rate * size)),
        generator=torch.Generator(context.device).manual_seed(context.seed),
    )
    accountant = RDPAccountant()
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(rate))
    part = physical_batch(untrained, context.device)
    return Training(untrained, network, optimizer, accountant, rate, max(1, round(1 / rate)), way.precision, part)


def _batch(data: TrainingData, index: Tensor) -> tuple[Tensor, Tensor]:
    """The examples ``index``, on their device: images as float32 in [0, 1], and their labels."""
    return data.images[data.rows[index]].float().div_(255), data.labels[index]
