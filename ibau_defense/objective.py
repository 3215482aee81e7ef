"""The objective of equation (1) as a pure function of the perturbation and the parameters."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ibau_defense.graphs import Graphs
from ibau_defense.parallel import Ranks, ranks_of, total
from ibau_defense.twice import ease_double_backward

Theta = tuple[Tensor, ...]


class Objective(Protocol):
    """G(δ, θ), maximised over δ: any differentiable scalar, of images or not.

    ``parts`` splits G into a sum of terms that are differentiated one after the other, so that memory is that of
    the largest; ``(self,)`` where there is nothing to split. An objective with ``ranks`` (``ibau_defense.parallel``)
    gives only this rank's parts, none perhaps, and its derivatives are summed over the ranks.
    """

    def __call__(self, delta: Tensor, theta: Theta) -> Tensor: ...

    def parts(self) -> Sequence[Objective]: ...


@dataclass(frozen=True)
class FunctionObjective:
    """An ``Objective`` from a plain function (δ, θ) ↦ scalar."""

    function: _Function

    def __call__(self, delta: Tensor, theta: Theta) -> Tensor:
        return self.function(delta, theta)

    def parts(self) -> Sequence[Objective]:
        return (self,)


class _Function(Protocol):
    def __call__(self, delta: Tensor, theta: Theta) -> Tensor: ...


class Network:
    """A classifier as a pure function of its parameters: evaluation mode, running statistics untouched.

    Holds a private copy of the module: the caller's mode, ``requires_grad`` flags, gradients and buffers are never
    changed. Dropout is off and BatchNorm uses its running statistics, as in the authors' code. θ is the parameters that
    take a gradient in the caller's module, all of them where none does; the others stay as they are.

    Args:
        module: (n, C, H, W) float in [0, 1] to (n, num_classes) logits.
        autocast: network passes run under ``torch.autocast`` of this dtype (``torch.bfloat16``); None for the
            parameters' own precision. Logits and losses are float32 (or the parameters' precision) either way.
        channels_last: lay images and convolution weights out channels-last.
        twice: swap convolutions and BatchNorm for twins that are cheaper under double backward
            (``ibau_defense.twice``); not for ``torch.func`` nor under ``autocast``.

    Attributes:
        graphs: where passes through this network are recorded and replayed; None for plain passes.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        twice: bool = False,
    ) -> None:
        self.module = copy.deepcopy(module).eval()
        free = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        self.module.requires_grad_(False)
        if twice:
            ease_double_backward(self.module)
        self.autocast = autocast
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.module = self.module.to(memory_format=torch.channels_last)
        self.names = [name for name, _ in self.module.named_parameters() if name in free or not free]
        self._buffers = dict(self.module.named_buffers())
        self.graphs: Graphs | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of the private module that θ is made of, in the order of ``names``."""
        return [self.module.get_parameter(name) for name in self.names]

    @property
    def theta(self) -> Theta:
        """The parameters, detached, in the order of ``names``; they alias the private module's storage."""
        return tuple(parameter.detach() for parameter in self.parameters)

    def __call__(self, images: Tensor, theta: Theta) -> Tensor:
        """(n, C, H, W) images to (n, num_classes) logits in the precision of θ."""
        state = {**dict(zip(self.names, theta, strict=True)), **self._buffers}
        images = images.contiguous(memory_format=self.memory_format)
        if self.autocast is None:
            return functional_call(self.module, state, (images,))  # type: ignore[no-any-return]
        with torch.autocast(images.device.type, dtype=self.autocast):
            logits = functional_call(self.module, state, (images,))
        return logits.to(theta[0].dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class UniversalLoss:
    """H(δ, θ) − r‖δ‖² of equation (1): the mean loss over a set of images that all carry the one perturbation δ.

        H(δ, θ) = 1/n Σᵢ L(f_θ(xᵢ + δ), yᵢ),   L the cross-entropy.

    Attributes:
        network: f as a pure function of θ.
        images: (n, C, H, W) float in [0, 1].
        labels: (n,) int64.
        clip: evaluate f at clip(x + δ, 0, 1) instead of x + δ. Equation (1) has no clipping; the authors' GTSRB
            notebook clips, their CIFAR-10 notebook does not.
        penalty: r ≥ 0 of the penalised form (the authors': 0.001); equation (1) has none.
        carriers: (n,) bool, which images carry δ; None for all of them, as in equation (1). The authors' outer
            loss lets 1 % of a batch carry it.
        micro_batch: most images in one pass; bounds memory whatever n is. None for all at once.
        weight: factor on the whole; a part's share of the images.
        assignment: (n,) int64, which of K perturbations each image carries; δ is then (K, C, H, W), and H the mean
            over the draw. None for one δ, as in equation (1).
        ranks: processes that share the images: ``parts`` is then this rank's share, and ``value_and_gradients`` and
            ``linearise`` sum over the ranks. A plain call evaluates all images in this process, whatever ``ranks``.
    """

    network: Network
    images: Tensor
    labels: Tensor
    clip: bool = False
    penalty: float = 0.0
    carriers: Tensor | None = None
    micro_batch: int | None = None
    weight: float = 1.0
    assignment: Tensor | None = None
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        if self.images.shape[0] == 0:
            raise ValueError("images: found none; expected at least one clean image")
        if self.images.shape[0] != self.labels.shape[0]:
            raise ValueError(
                f"labels: found {self.labels.shape[0]}; expected one for each of {len(self.images)} images"
            )

    def perturb(self, delta: Tensor) -> Tensor:
        """x + δ on the carriers, x elsewhere, clipped where ``clip``."""
        added: Tensor = delta if self.assignment is None else delta[self.assignment]
        if self.carriers is not None:
            added = added * self.carriers.view(-1, *[1] * (self.images.dim() - 1)).to(delta.dtype)
        images = self.images + added
        return images.clamp(0.0, 1.0) if self.clip else images

    def outputs(self, delta: Tensor, theta: Theta) -> Tensor:
        """(n, num_classes) logits of the perturbed images."""
        return self.network(self.perturb(delta), theta)

    def loss_of_outputs(self, logits: Tensor) -> Tensor:
        return self.weight * F.cross_entropy(logits, self.labels)

    def __call__(self, delta: Tensor, theta: Theta) -> Tensor:
        loss = self.loss_of_outputs(self.outputs(delta, theta))
        if self.penalty:
            loss = loss - self.weight * self.penalty * delta.square().sum()
        return loss

    def parts(self) -> Sequence[UniversalLoss]:
        count = self.images.shape[0]
        own = slice(0, count) if self.ranks is None else self.ranks.share(count)
        most = self.micro_batch or count
        if own == slice(0, count) and count <= most:
            return (self if self.ranks is None else replace(self, ranks=None),)
        starts = range(own.start, own.stop, most)
        return [self._part(slice(start, min(start + most, own.stop)), count) for start in starts]

    def tensors(self) -> tuple[Tensor, ...]:
        """What a pass reads besides δ and θ."""
        return tuple(x for x in (self.images, self.labels, self.carriers, self.assignment) if x is not None)

    def with_tensors(self, tensors: Sequence[Tensor]) -> UniversalLoss:
        """The same loss of other ``tensors()``."""
        images, labels, *masks = tensors
        carriers = None if self.carriers is None else masks.pop(0)
        assignment = None if self.assignment is None else masks.pop(0)
        return replace(self, images=images, labels=labels, carriers=carriers, assignment=assignment)

    @property
    def settings(self) -> Hashable:
        """What decides a pass besides ``tensors()``, δ and θ."""
        masks = self.carriers is None, self.assignment is None
        return self.clip, self.penalty, self.micro_batch, self.weight, masks

    def _part(self, piece: slice, count: int) -> UniversalLoss:
        images = self.images[piece]
        return replace(
            self,
            images=images,
            labels=self.labels[piece],
            carriers=None if self.carriers is None else self.carriers[piece],
            micro_batch=None,
            ranks=None,
            weight=self.weight * images.shape[0] / count,
            assignment=None if self.assignment is None else self.assignment[piece],
        )


def value_and_gradients(
    objective: Objective, delta: Tensor, theta: Theta, *, wrt_delta: bool = True, wrt_theta: bool = False
) -> tuple[Tensor, Tensor | None, Theta | None]:
    """G, ∇₁G and ∇₂G at (δ, θ), part by part and summed over the ranks, if any; detached.

    A gradient not asked for is None.
    """
    sums: list[Tensor] | None = None
    for part in objective.parts():
        found = _pass(part, delta, theta, wrt_delta, wrt_theta)
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    if sums is None:
        if ranks_of(objective) is None:
            raise ValueError("objective: found no parts; expected at least one")
        wanted = ((delta,) if wrt_delta else ()) + (theta if wrt_theta else ())
        sums = [delta.new_zeros(()), *(torch.zeros_like(x) for x in wanted)]
    value, *gradients = total(objective, sums)
    return value, (gradients[0] if wrt_delta else None), (tuple(gradients[int(wrt_delta) :]) if wrt_theta else None)


def _pass(part: Objective, delta: Tensor, theta: Theta, wrt_delta: bool, wrt_theta: bool) -> list[Tensor]:
    """The value of one part and the gradients asked for, replayed where the network's passes are recorded."""
    graphs = graphs_of(part)
    if graphs is None:
        return _differentiate(part, delta, theta, wrt_delta, wrt_theta)
    loss = cast(UniversalLoss, part)

    def work(delta: Tensor, *tensors: Tensor) -> list[Tensor]:
        return _differentiate(loss.with_tensors(tensors), delta, theta, wrt_delta, wrt_theta)

    name = ("pass", loss.settings, wrt_delta, wrt_theta)
    count = len(loss.images)
    return graphs.run(name, work, (delta.detach(), *loss.tensors()), theta, (count, count))


def graphs_of(objective: Objective) -> Graphs | None:
    """Where passes of ``objective`` are recorded; None where they are not."""
    return objective.network.graphs if isinstance(objective, UniversalLoss) else None


def _differentiate(part: Objective, delta: Tensor, theta: Theta, wrt_delta: bool, wrt_theta: bool) -> list[Tensor]:
    delta = delta.detach().requires_grad_(wrt_delta)
    theta = tuple(parameter.detach().requires_grad_(wrt_theta) for parameter in theta)
    inputs = ((delta,) if wrt_delta else ()) + (theta if wrt_theta else ())
    with torch.enable_grad():
        value = part(delta, theta)
    found = torch.autograd.grad(value, inputs, allow_unused=True) if inputs else ()
    gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]
    return [value.detach(), *gradients]
