"""Out of memory: tried again in smaller micro-batches where the defense can, and told where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tiny_sweep
import torch
from torch import nn

from adapters import defenses
from adapters.defenses import Ibau
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages
from bench.attempts import is_out_of_memory, run_within_memory
from bench.cells import Cell
from bench.provenance import Commit
from bench.records import Record
from bench.run_cell import CellRunner

NO_MEMORY = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


class Bounded(Defense):
    name: ClassVar[str] = "bounded"
    bounds_memory: ClassVar[bool] = True

    micro_batch: int | None = None


class Unbounded(Defense):
    name: ClassVar[str] = "unbounded"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(NO_MEMORY),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError(str(error)))


def test_torch_and_numpy_say_it_in_these_words() -> None:
    for ask in (lambda: torch.empty(2**46), lambda: np.empty(2**46)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("own", "images", "room", "bounds"),
    [
        (None, 100, 1000, [None]),
        (None, 100, 20, [None, 64, 16]),
        (None, 10, 1, [None, 4, 1]),
        (8, 100, 1, [None, 4, 1]),
        (16, 100, 1, [None, 4, 1]),
    ],
)
def test_attempts_shrink_until_one_fits(own: int | None, images: int, room: int, bounds: list[int | None]) -> None:
    tried: list[int | None] = []

    def run(bound: int | None) -> str:
        tried.append(bound)
        if min(bound or images, own or images) > room:
            raise RuntimeError(NO_MEMORY)
        return "done"

    outcome = run_within_memory(Bounded(micro_batch=own), images, run)
    assert outcome.value == "done"
    assert tried == bounds
    if len(bounds) == 1:
        assert outcome.details == {}
    else:
        told = outcome.details["out_of_memory"]
        assert (told["attempts"], told["micro_batch"], len(told["failures"])) == (
            len(bounds),
            bounds[-1],
            len(tried) - 1,
        )


@pytest.mark.parametrize(
    ("defense", "error", "attempts"),
    [(Bounded(), MemoryError(), 5), (Unbounded(), MemoryError(), 1), (Bounded(), ValueError("no"), 1)],
)
def test_what_does_not_fit_at_all_is_raised(defense: Defense, error: Exception, attempts: int) -> None:
    tried: list[int | None] = []

    def run(bound: int | None) -> None:
        tried.append(bound)
        raise error

    with pytest.raises(type(error)):
        run_within_memory(defense, 100, run)
    assert len(tried) == attempts


class Narrow(Ibau):
    """I-BAU where only ``ROOM`` images fit into memory at once."""

    name: ClassVar[str] = "narrow"
    ROOM: ClassVar[int] = 4

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        if (context.micro_batch or len(clean.labels)) > self.ROOM:
            torch.empty(2**46)
        return super().run(model, clean, context)


class Greedy(Defense):
    """Wants more than there is, whatever it is told."""

    name: ClassVar[str] = "greedy"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        torch.empty(2**46)
        return DefenseResult(model)


def test_a_cell_out_of_memory_gives_the_same_model_in_smaller_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(defenses.DEFENSES, "narrow", Narrow)
    monkeypatch.setitem(defenses.DEFENSES, "greedy", Greedy)
    tiny_sweep.write_images(tmp_path)
    runner = CellRunner(tmp_path, tmp_path / "cache", torch.device("cpu"), Commit(None, None))

    def run(name: str) -> Record:
        settings = {"recipe": "reference_gtsrb", "rounds": 1, "carriers": 0.5} if name in ("ibau", "narrow") else {}
        tree = tiny_sweep.tree()["cell"] | {"poison_ratio": 0.2, "defense": {"name": name, **settings}}
        return runner.run(Cell.model_validate({**tree, "radius": 1.0}))

    whole, narrow, greedy = run("ibau"), run("narrow"), run("greedy")
    assert (whole.status, narrow.status) == ("ok", "ok")
    assert whole.details == {}
    told = narrow.details["out_of_memory"]
    assert (told["attempts"], told["micro_batch"]) == (2, 4)
    assert "can't allocate memory" in told["failures"][0]
    assert narrow.acc == whole.acc
    assert greedy.status == "failed"
    assert str(greedy.reason).startswith("out of memory: RuntimeError: ")
    assert run("ibau").acc == whole.acc
