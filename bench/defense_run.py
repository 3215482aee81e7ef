"""``DefenseRun``: a cell's defense on a fresh copy of its victim, under the clock, the counter and the memory watch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from adapters import defenses
from adapters.attacks import Visibility
from adapters.protocols import (
    Defense,
    DefenseContext,
    DefenseResult,
    ImageTensors,
    LabelledImages,
    PassCounter,
    TrainingContext,
    TrainingData,
)  # fmt: skip
from bench.cells import Cell, content_hash
from bench.memory import PeakMemory
from bench.records import Passes
from bench.scoring import Scorer, Scores
from bench.seeds import derive_seed
from bench.splits import Split, clean_indices
from bench.victims import Victim, new_model, poisoned_training_set
from bench.watchdog import Watchdog
from ibau_defense.cuda import now

EFFECT_ASR = 0.2
EFFECT_ACC_LOSS = 0.1
"""A defense has taken effect once ASR is below the one and ACC has fallen by at most the other (Table 6)."""

OnRound = Callable[[nn.Module, Mapping[str, Any], float], None]
"""Called with the model after a round, the defense's diagnostics, and its own seconds so far."""


class Prepared(NamedTuple):
    """What the cells of one victim share."""

    data: ImageTensors
    split: Split
    scorer: Scorer
    victim: Victim
    before: Scores
    visibility: tuple[Visibility, ...]
    tracer: Scorer
    before_traced: Scores


def has_effect(acc_before: float, acc: float, asr: float, *, helper: bool = False) -> bool:
    """``helper``: the model is one that the defense never returns; it has none."""
    return not helper and asr < EFFECT_ASR and acc_before - acc <= EFFECT_ACC_LOSS


@dataclass
class Clock:
    """Seconds of the defense's own work: stopped while the harness scores. CUDA is synchronised at both ends."""

    device: torch.device
    _total: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        self._since = now(self.device)

    def stop(self) -> None:
        if self._since is not None:
            self._total += now(self.device) - self._since
            self._since = None

    @property
    def seconds(self) -> float:
        return self._total + (0.0 if self._since is None else time.perf_counter() - self._since)


@dataclass(frozen=True)
class _TimedContext(DefenseContext):
    """A context whose time limit counts the defense's own seconds only."""

    clock: Clock = field(default_factory=lambda: Clock(torch.device("cpu")))
    limit: float | None = None

    def out_of_time(self) -> bool:
        return self.limit is not None and self.clock.seconds > self.limit


@dataclass(frozen=True, kw_only=True)
class _TimedTrainingContext(_TimedContext, TrainingContext):
    """The same, with the poisoned training data."""


@contextmanager
def unmoved_settings() -> Iterator[None]:
    """Puts torch's settings back that a defense may have left changed: the next cell on this worker would have them."""
    gradients, threads, dtype = torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


class DefenseRun:
    """Everything but the work is done when it is made; ``run`` does the work, once.

    Args:
        on_round: called after each round of the defense, while clock, counter and memory watch stand still.
        micro_batch: how many images may go through the network at once, after an attempt that ran out of memory.
        watch_memory: whether to find the peak of memory, which takes a moment at either end of each round.
    """

    def __init__(
        self,
        cell: Cell,
        prepared: Prepared,
        clean: LabelledImages,
        device: torch.device,
        on_round: OnRound,
        *,
        micro_batch: int | None = None,
        watch_memory: bool = True,
    ) -> None:
        self._defense, self._on_round = build_defense(cell), on_round
        self._clean = LabelledImages(*(part.clone() for part in clean))  # whatever a plug-in does to it
        self._model = copy.deepcopy(prepared.victim.model)
        self._clock, self._passes, self._watchdog = Clock(device), PassCounter(), Watchdog(cell.time_limit)
        self._detach = self._passes.attach(self._model)
        self._context = self._make_context(cell, prepared, micro_batch)
        self._memory = PeakMemory(device) if watch_memory else None

    def run(self) -> DefenseResult:
        """What the defense returns. Raises whatever it or ``on_round`` raises, and is at rest then too.

        Also raises ``OverdueError``, long after the cell's time limit.
        """
        self._watchdog.start()
        try:
            with unmoved_settings():
                self._clock.start()
                return self._defense.run(self._model, self._clean, self._context)
        finally:
            self._rest()
            self._detach()

    @property
    def seconds(self) -> float:
        return self._clock.seconds

    @property
    def peak_memory(self) -> int:
        """Bytes (``bench.memory``); 0 where nobody watched."""
        return self._memory.bytes if self._memory else 0

    @property
    def passes(self) -> Passes:
        return Passes(**self._passes.as_dict())

    def _rest(self) -> None:
        self._watchdog.stop()
        self._clock.stop()
        if self._memory:
            self._memory.pause()
        self._passes.enabled = False

    def _round(self, current: nn.Module, info: Mapping[str, Any]) -> None:
        self._rest()
        self._on_round(current, info, self.seconds)
        self._passes.enabled = True
        if self._memory:
            self._memory.resume()
        self._watchdog.start()
        self._clock.start()

    def _make_context(self, cell: Cell, prepared: Prepared, micro_batch: int | None) -> DefenseContext:
        limit = cell.time_limit
        given: dict[str, Any] = {
            "num_classes": prepared.data.num_classes,
            "device": self._clock.device,
            "seed": _defense_seed(cell),
            "radius": cell.radius,
            "deadline": None if limit is None else time.monotonic() + limit,
            "on_round": self._round,
            "passes": self._passes,
            "micro_batch": micro_batch,
            "clock": self._clock,
            "limit": limit,
        }
        if self._defense.needs_training_data:
            return _TimedTrainingContext(**given, **_training_data(cell, prepared, self._passes))
        return _TimedContext(**given)


def build_defense(cell: Cell) -> Defense:
    return defenses.build(dict(cell.defense))


def clean_set(cell: Cell, prepared: Prepared, device: torch.device) -> LabelledImages:
    """The defender's images, float32 in [0, 1] on ``device``: (n, C, H, W), and their labels (n,)."""
    test = prepared.data.test
    if cell.clean_size is None:
        index = torch.empty(0, dtype=torch.int64)
    else:
        index = clean_indices(prepared.split, cell.clean_size)
    return LabelledImages(test.images[index].to(device).float().div_(255), test.labels[index].to(device))


def _training_data(cell: Cell, prepared: Prepared, passes: PassCounter) -> dict[str, Any]:
    def untrained() -> nn.Module:
        model = new_model(cell, prepared.data)
        passes.attach(model)
        return model

    poisoned = poisoned_training_set(cell, prepared.data, prepared.scorer.attacks)
    data = TrainingData(poisoned.images, poisoned.labels, poisoned.rows)
    return {"training_data": data, "untrained": untrained}


def _defense_seed(cell: Cell) -> int:
    """Data set, attack, defense, repetition and run: cells that differ in another axis share their random numbers."""
    attack = content_hash(cell.model_dump(mode="json", include={"attack", "target", "victim"}))
    run = () if cell.run is None else (cell.run,)
    return derive_seed("defense", cell.dataset, attack, cell.defense["name"], cell.seed, *run)
