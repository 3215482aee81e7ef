"""Seconds until a defense has taken effect (Table 6): first it is found in which round, then that stretch is timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from bench.cells import Cell
from bench.defense_run import DefenseRun, Prepared, clean_set, has_effect
from bench.records import Record
from bench.run_cell import run_cell

MOST_REPETITIONS = 5
NOT_TOLD = {"rounds", "details", "tsne", "triggers"}
"""Of a record, what a timing leaves out."""


class _Reached(Exception):  # noqa: N818 (no error: the way out of a defense that has done enough)
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Until:
    """Ends a run after its ``last`` round, without scoring any; None lets it go to its own end."""

    def __init__(self, last: int | None) -> None:
        self._last, self._done = last, 0

    def __call__(self, model: nn.Module, info: Mapping[str, Any], seconds: float) -> None:
        self._done += 1
        if self._done == self._last:
            raise _Reached(model)


class Stretch(NamedTuple):
    """What is timed. ``record``: of the untimed run, scored round by round; ``last``: the first round with effect,
    None where there is none and the run goes to its end; ``seconds``: what that took then."""

    record: Record
    last: int | None
    seconds: float

    def repetitions(self, budget: float) -> int:
        """As many as ``budget`` seconds allow; one at least."""
        return max(1, min(MOST_REPETITIONS, int(budget / max(self.seconds, 1e-9))))


def explore(cell: Cell, prepared: Prepared, device: torch.device) -> Stretch:
    """Run the defense once as a sweep would: the warm-up of the timed runs, which do the same again up to effect.

    Raises ``ValueError`` for a victim on which there is no effect to be had.
    """
    record = run_cell(cell, prepared, device)
    if record.seconds is None:
        raise ValueError(f"{record.reason}; expected a victim that answers to its trigger")
    acc = prepared.before_traced.acc
    effects = (has_effect(acc, row["acc"], row["asr"], helper=bool(row.get("helper"))) for row in record.rounds)
    last = next((number for number, effect in enumerate(effects, start=1) if effect), None)
    return Stretch(record, last, record.rounds[last - 1]["elapsed_seconds"] if last else record.seconds)


def time_to_effect(benchmark: Any, cell: Cell, prepared: Prepared, device: torch.device, budget: float) -> None:
    """Time the defense of ``cell`` up to its effect: each repetition on a fresh copy of the victim, nothing scored.

    The device is synchronised at both ends (``DefenseRun``). Leaves in ``extra_info`` the record of the run that
    was scored, ACC and ASR of the model that the last repetition ended with, whether that is effect, and its passes.
    """
    stretch = explore(cell, prepared, device)
    clean = clean_set(cell, prepared, device)
    last: list[tuple[DefenseRun, nn.Module]] = []

    def setup() -> tuple[tuple[DefenseRun], dict[str, Any]]:
        last.clear()
        return (DefenseRun(cell, prepared, clean, device, Until(stretch.last), watch_memory=False),), {}

    def work(run: DefenseRun) -> None:
        last.append((run, _outcome(run)))

    benchmark.pedantic(work, setup=setup, rounds=stretch.repetitions(budget), warmup_rounds=0)
    ((run, model),) = last
    after = prepared.scorer.score(model)
    record = stretch.record.model_dump(mode="json", by_alias=True, exclude=NOT_TOLD)
    benchmark.extra_info.update(
        kind="defense", record=record, round=stretch.last, effect=has_effect(prepared.before.acc, after.acc, after.asr),
        acc=after.acc, asr=after.asr, passes=run.passes.model_dump(), peak_memory_bytes=record["peak_memory_bytes"],
        own_seconds=run.seconds,
    )  # fmt: skip


def _outcome(run: DefenseRun) -> nn.Module:
    try:
        return run.run().model
    except _Reached as reached:
        return reached.model
