"""The two controls every defense is read against: nothing, and training on the clean set."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages


class NoDefense(Defense):
    """The victim as it is. ``clean_size`` matters to the error gap alone."""

    name: ClassVar[str] = "none"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        return DefenseResult(copy.deepcopy(model).eval())


class FineTuning(Defense):
    """Plain training of all parameters on the clean set: what a defense must beat to be worth its name.

    SGD with momentum 0.9 at a constant rate, mini-batches reshuffled each epoch, in training mode (BatchNorm
    statistics follow the clean set, dropout is on), no augmentation, network passes in bfloat16 and channels-last
    as in the victim's own training (``precision: float32`` turns that off). A last mini-batch of one image is skipped
    where there is another, since BatchNorm cannot normalise it.
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

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        tuned = copy.deepcopy(model)
        tuned.train(self.batch_norm == "train")
        tuned.requires_grad_(True)
        tuned = tuned.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            tuned.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        generator = torch.Generator().manual_seed(context.seed)
        devices = [context.device] if context.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(context.seed)
            for epoch in range(self.epochs):
                loss = self._epoch(tuned, clean, optimizer, generator)
                if not bool(loss.isfinite()):
                    return DefenseResult(copy.deepcopy(model).eval(), "diverged", "the loss was not finite")
                self._report(tuned, context, epoch, float(loss))
                if context.out_of_time():
                    return DefenseResult(tuned.eval(), "timeout", f"stopped after {epoch + 1} of {self.epochs} epochs")
        _restore_flags(tuned, model)
        return DefenseResult(tuned.eval())

    def _epoch(
        self,
        model: nn.Module,
        clean: LabelledImages,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> Tensor:
        order = torch.randperm(len(clean.labels), generator=generator).to(clean.images.device)
        loss = torch.zeros((), device=clean.images.device)
        for index in order.split(self.batch_size):
            if len(index) == 1 and len(order) > 1:
                continue
            images = clean.images[index].contiguous(memory_format=torch.channels_last)
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), clean.labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss.detach()

    def _report(self, model: nn.Module, context: DefenseContext, epoch: int, loss: float) -> None:
        mode = model.training
        context.on_round(model.eval(), {"index": epoch, "loss": loss})
        model.train(mode)


def _restore_flags(copied: nn.Module, original: nn.Module) -> None:
    for mine, theirs in zip(copied.parameters(), original.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
        mine.grad = None
