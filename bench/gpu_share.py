"""``resources: {gpu: auto}``: so much of a GPU for a cell as earlier records say that its memory takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from bench.cells import Cell
from bench.provenance import is_gpu
from bench.records import Record
from bench.spec import DEFAULT_SHARE, Resources

BESIDES_BYTES = 2 * 2**30
"""What a worker holds on a GPU besides what a record's ``peak_memory_bytes`` counts: CUDA's context, workspaces of its
libraries, the images that victims are trained on, what recorded steps keep reserved between replays. A guess with room
to spare, not measured."""
KEY = "resources.gpu: auto"

Kind = tuple[str, str]
"""Data set and model."""


def resolved(
    resources: Resources, cells: Sequence[Cell], folders: Sequence[Callable[[], Iterable[Record]]], memory: int | None
) -> tuple[Resources, str]:
    """``resources`` with a number in the place of ``auto``, and a line on it; empty where there is nothing to say.

    Args:
        cells: those that are to run.
        folders: the records to look at; the first of them that tells of any of the cells' kinds counts.
        memory: of a GPU, in bytes; None where none is known.
    """
    if resources.gpu != "auto" or resources.alone or not cells:
        return resources, ""
    if memory is None:
        return _with(DEFAULT_SHARE, resources), f"{KEY} is {DEFAULT_SHARE:g}: no GPU here whose memory would be known"
    kinds = {(cell.dataset, cell.model) for cell in cells}
    found = next(filter(None, (peaks(read(), kinds) for read in folders)), {})
    if not found:
        line = f"{KEY} is {DEFAULT_SHARE:g}: no earlier record tells the memory of such cells on a GPU"
        return _with(DEFAULT_SHARE, resources), line
    most = max(found.values())
    told, share = f"{_gibibytes(most)} at most in earlier records", of_a_gpu(most, memory)
    if unknown := len(kinds - found.keys()):
        share = max(share, DEFAULT_SHARE)
        told += (
            f", which tell nothing of {unknown} of {len(kinds)} pairs of data set and model: {DEFAULT_SHARE:g} at least"
        )
    line = f"{KEY} is {share:.3g}: {told}; {_gibibytes(BESIDES_BYTES)} besides; the GPU has {_gibibytes(memory)}"
    return _with(share, resources), line


def of_a_gpu(peak: int, memory: int) -> float:
    """The smallest 1/k of ``memory`` that holds ``peak`` and what is held besides, all in bytes; 1 where none does."""
    return 1 / max(1, memory // (peak + BESIDES_BYTES))


def peaks(records: Iterable[Record], kinds: set[Kind]) -> dict[Kind, int]:
    """The largest peak of memory on a GPU, in bytes, of each of ``kinds`` that any of ``records`` tells of."""
    found: dict[Kind, int] = {}
    for record in records:
        kind = record.cell.dataset, record.cell.model
        if kind in kinds and record.peak_memory_bytes and record.provenance and is_gpu(record.provenance.device):
            found[kind] = max(found.get(kind, 0), record.peak_memory_bytes)
    return found


def memory_here() -> int | None:
    """Of this machine's smallest GPU, in bytes; None where there is none."""
    sizes = [torch.cuda.get_device_properties(one).total_memory for one in range(torch.cuda.device_count())]
    return min(sizes, default=None)


def _with(share: float, resources: Resources) -> Resources:
    return resources.model_copy(update={"gpu": share})


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
