"""Fine-Pruning (Liu, Dolan-Gavitt, Garg, RAID 2018)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.defenses.channel_mask import ChannelMask
from adapters.defenses.feature_maps import captured, check_layers, last
from adapters.defenses.tuning import Tuning, autocast, restore_flags, seeded, trainable_copy, tune, tuned_result
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages

EVALUATION_BATCH = 128


class FinePruning(Defense):
    """Prune the channels of the last feature map that clean images leave dormant, then fine-tune.

    A channel's activity is its mean over clean images and pixels, where it enters the head. The authors' networks
    have ReLU, where that is at least 0 and a dormant channel's is near it. Under ELU it may be negative, and the
    plain mean, the default, takes away first what is far from dormant; ``activity: absolute`` is the mean of the
    absolute value, which is near 0 where a channel is dormant under any activation. Channels go in ascending order
    of activity, ``prune_step`` at a time, for as long as the accuracy on the validation part is at most
    ``max_accuracy_drop`` below the unpruned model's; at least one channel stays. The rest of the clean set
    fine-tunes. Round 0 is the pruned model, the others are epochs.
    """

    name: ClassVar[str] = "fine_pruning"

    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """In accuracy, absolute: 0.2 is 20 points."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the clean set: 1,000 of the paper's 5,000."""
    prune_step: Annotated[int, Field(ge=1)] = 1
    activity: Literal["mean", "absolute"] | None = None
    """What orders the channels; null: the mean."""
    layer: str | None = None
    """The module whose output channels are pruned; null: the network's last feature map."""
    epochs: Annotated[int, Field(ge=1)] = 10
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Annotated[int, Field(ge=2)] = 128
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def work(self, images: int, classes: int) -> float:
        return float(images * self.epochs)

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        pruned = trainable_copy(model).eval()
        with seeded(context) as generator:
            validation, rest = _parts(clean, self.validation_share, generator)
            layer = self._layer(pruned, clean.images[:1])
            pruning = self._prune(pruned, layer, validation, context)
            pruned.get_submodule(layer).register_forward_hook(ChannelMask(pruning.mask))
            details = pruning.details(layer)
            context.on_round(pruned, {"index": 0, "phase": "pruning", "pruned": details["pruned"]})
            if not pruning.finished:
                restore_flags(pruned, model)
                return DefenseResult(pruned, "timeout", "stopped while channels were pruned", details)
            tuning = Tuning(
                epochs=self.epochs, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay,
                batch_size=self.batch_size, precision=self.precision,
            )  # fmt: skip
            ending = tune(pruned, rest, tuning, context, generator, first_round=1, info={"phase": "fine_tuning"})
        return tuned_result(pruned, model, ending, details)

    def _layer(self, model: nn.Module, image: Tensor) -> str:
        if self.layer is None:
            return last(model, image)
        check_layers(model, [self.layer], "cell.defense.layer")
        return self.layer

    def _prune(self, model: nn.Module, layer: str, validation: LabelledImages, context: DefenseContext) -> Pruning:
        absolute = self.activity == "absolute"
        activity = channel_activity(model, layer, validation.images, self.precision, absolute=absolute)
        order = activity.argsort(stable=True)
        before = self._accuracy(model, validation)
        kept, after, finished = torch.ones_like(activity), before, True
        trial = ChannelMask(kept.clone())
        handle = model.get_submodule(layer).register_forward_hook(trial)
        try:
            for count in range(self.prune_step, len(order), self.prune_step):
                finished = not context.out_of_time()
                if not finished:
                    break
                trial.mask[order[count - self.prune_step : count]] = 0
                accuracy = self._accuracy(model, validation)
                if before - accuracy > self.max_accuracy_drop:
                    break
                kept, after = trial.mask.clone(), accuracy
        finally:
            handle.remove()
        return Pruning(kept, before, after, finished)

    def _accuracy(self, model: nn.Module, data: LabelledImages) -> float:
        right = 0
        with torch.no_grad(), autocast(data.images.device, self.precision):
            for images, labels in _split(data):
                right += int((model(images).argmax(dim=1) == labels).sum())
        return right / len(data.labels)


class Pruning(NamedTuple):
    """``mask``: (C,) float of zeros and ones; accuracies on the validation part before and after."""

    mask: Tensor
    before: float
    after: float
    finished: bool

    def details(self, layer: str) -> dict[str, Any]:
        return {
            "layer": layer,
            "channels": len(self.mask),
            "pruned": int((self.mask == 0).sum()),
            "pruned_channels": (self.mask == 0).nonzero().flatten().tolist(),
            "validation_accuracy": {"before": self.before, "after": self.after},
        }


def channel_activity(
    model: nn.Module, layer: str, images: Tensor, precision: str = "float32", *, absolute: bool = False
) -> Tensor:
    """(C,) float32: the mean of each channel of ``layer``'s output, or of that one's absolute value, over images and
    pixels."""
    totals = []
    with torch.no_grad(), captured(model, [layer]) as outputs, autocast(images.device, precision):
        for batch in images.split(EVALUATION_BATCH):
            model(batch.contiguous(memory_format=torch.channels_last))
            output = outputs[layer].float().flatten(2)
            totals.append((output.abs() if absolute else output).mean(dim=2).sum(dim=0))
    return torch.stack(totals).sum(dim=0) / len(images)


def _split(data: LabelledImages) -> list[tuple[Tensor, Tensor]]:
    images = data.images.contiguous(memory_format=torch.channels_last)
    return list(zip(images.split(EVALUATION_BATCH), data.labels.split(EVALUATION_BATCH), strict=True))


def _parts(clean: LabelledImages, share: float, generator: torch.Generator) -> tuple[LabelledImages, LabelledImages]:
    """A random part for validation, and the rest; at least one image in each (a single one is both)."""
    order = torch.randperm(len(clean.labels), generator=generator).to(clean.images.device)
    if len(order) == 1:
        return clean, clean
    count = min(len(order) - 1, max(1, round(share * len(order))))
    one, other = order[:count], order[count:]
    return (
        LabelledImages(clean.images[one], clean.labels[one]),
        LabelledImages(clean.images[other], clean.labels[other]),
    )
