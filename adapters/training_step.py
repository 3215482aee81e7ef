"""The gradients of one mini-batch after the other; on a CUDA device the step is recorded once and replayed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adapters.protocols import PassCounter
from ibau_defense.graphs import CudaRecorder, Images, Recorder, Recording, shapes, silent, why

LOGGER = logging.getLogger(__name__)

Work = Callable[..., Sequence[Tensor]]
"""Adds to the gradients and returns what the caller wants to know, detached, such as the loss."""

AFTER = 20
"""Plain steps of one shape before it is recorded: recording takes about as long as some tens of them."""


class TrainingStep:
    """Calling it sets the gradients of ``parameters`` to what ``work`` adds to them, and returns what ``work`` returns.

    A small network on a GPU spends a training step on launching kernels. There a step whose shapes have come ``AFTER``
    times is captured as a CUDA graph and launched as a whole from then on; one of another shape, such as the last
    mini-batch of an epoch, runs plainly, until it has come as often in a row and takes the other's place. On the CPU
    every step runs plainly.

    ``work`` may not read values on the host. What it changes besides the gradients, such as BatchNorm's statistics, it
    changes in place; random numbers are the device's global generator's, fresh in every replay. A step cannot be done
    twice to compare a replay with it, as ``ibau_defense.graphs`` does with a pass: the tests do, on a CUDA device.
    Where recording fails the reason is logged, and steps of that shape run plainly for good.

    The gradients are this object's: nobody else may set them to None between two steps, as ``zero_grad`` does. Steps of
    every shape must give gradients to the same parameters: one that a recorded step leaves out would keep what a plain
    step gave it.

    Args:
        tally: told of the images of every replay, which its hooks do not see.
        recorded: False for plain steps on a CUDA device too.
    """

    def __init__(
        self,
        work: Work,
        parameters: Iterable[Tensor],
        device: torch.device,
        tally: PassCounter | None = None,
        recorder: Recorder | None = None,
        recorded: bool = True,
    ) -> None:
        self.work, self.parameters, self.tally = work, list(parameters), tally or PassCounter()
        wanted = recorded and recorder is None and device.type == "cuda"
        self.recorder = CudaRecorder(device) if wanted else recorder
        self.replays = 0
        self._entry: _Entry | None = None
        self._counts: Counter[Hashable] = Counter()
        self._row: tuple[Hashable, int] = (None, 0)
        self._refused: set[Hashable] = set()
        self._images: dict[Hashable, Images] = {}  # of the last plain step of each shape

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """``inputs``: tensors alone, and all that differs from step to step."""
        if self.recorder is None:
            return self._plainly(inputs)
        key = shapes(inputs)
        if self._is_due(key):
            self._entry = self._recorded(self.recorder, key, inputs)
        entry = self._entry
        if entry is None or entry.key != key:
            return self.recorder.aside(lambda: self._counted(key, inputs))
        return self._replay(entry, inputs)

    def _is_due(self, key: Hashable) -> bool:
        last, row = self._row
        self._row = key, row + 1 if key == last else 1
        self._counts[key] += 1
        if self._entry is None:
            return key not in self._refused and self._counts[key] > AFTER
        return key not in self._refused and key != self._entry.key and self._row[1] > AFTER

    def _plainly(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if self._entry is None:
            self._drop_gradients()
        else:  # they stay where a recording writes them
            torch._foreach_zero_([one.grad for one in self.parameters if one.grad is not None])
        return list(self.work(*inputs))

    def _counted(self, key: Hashable, inputs: Sequence[Tensor]) -> list[Tensor]:
        before = self.tally.forward, self.tally.backward
        found = self._plainly(inputs)
        self._images[key] = self.tally.forward - before[0], self.tally.backward - before[1]
        return found

    def _replay(self, entry: _Entry, inputs: Sequence[Tensor]) -> list[Tensor]:
        for buffer, value in zip(entry.inputs, inputs, strict=True):
            buffer.copy_(value)
        with silent(self.tally):
            entry.recording.replay()
        self.replays += 1
        self.tally.add(*entry.images)
        return [one.clone() for one in entry.results]

    def _recorded(self, recorder: Recorder, key: Hashable, inputs: Sequence[Tensor]) -> _Entry | None:
        buffers = [one.detach().clone(memory_format=torch.preserve_format) for one in inputs]
        self._entry = None  # and its memory is free before the next one takes any
        self._drop_gradients()
        try:
            with silent(self.tally):
                recording, results = recorder.record(lambda: self.work(*buffers))
        except RuntimeError as error:  # torch's own of a capture, out of memory among them
            self._refused.add(key)
            self._drop_gradients()
            LOGGER.warning("a training step is not recorded, run plainly from now on: %s", why(error))
            return None
        return _Entry(key, buffers, recording, results, self._images[key])

    def _drop_gradients(self) -> None:
        for one in self.parameters:
            one.grad = None


class _Entry(NamedTuple):
    key: Hashable
    inputs: list[Tensor]
    recording: Recording
    results: Sequence[Tensor]
    images: Images


def descent(model: nn.Module, loss: Callable[..., Tensor]) -> Work:
    """The work of a plain training step: ``loss(model, *inputs)``, a scalar, and its gradients; returns the loss."""

    def work(*inputs: Tensor) -> Sequence[Tensor]:
        value = loss(model, *inputs)
        torch.autograd.backward(value)
        return (value.detach(),)

    return work
