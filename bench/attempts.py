"""A defense that runs out of memory is run again, in smaller micro-batches."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from adapters.protocols import Defense

logger = logging.getLogger(__name__)

LADDER = (64, 16, 4, 1)
"""Images in one pass at most, attempt after attempt, once all at once did not fit."""

_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
"""What torch's allocators and CUDA's libraries say in a plain ``RuntimeError``."""

Value = TypeVar("Value")


class Outcome(NamedTuple, Generic[Value]):
    """``value`` of the attempt that succeeded; ``details``: what a record says of those before, else empty."""

    value: Value
    details: dict[str, Any]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory, of the host or of a device, could not be had."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def run_within_memory(defense: Defense, images: int, run: Callable[[int | None], Value]) -> Outcome[Value]:
    """``run(micro_batch)``, first without a bound, and after each failure for want of memory with a smaller one.

    Only a defense that keeps to a bound and gives the same result under it (``Defense.bounds_memory``) is run again.
    Each attempt starts afresh, on a new copy of the victim and with the clock at zero.

    Args:
        images: how many images the defense holds; a bound of as many would change nothing.
        run: one attempt.
    """
    failures: list[str] = []
    for bound in _bounds(defense, images):
        try:
            value = run(bound)
        except Exception as error:
            if not is_out_of_memory(error) or bound == _last(defense, images):
                raise
            failures.append(f"{_size(bound)}: {' '.join(str(error).split())[:200]}")
            logger.warning("%s ran out of memory with %s: smaller ones are tried", defense.name, _size(bound))
        else:  # outside the handler, whose traceback keeps the tensors of the failed attempt alive
            details = {"out_of_memory": {"attempts": len(failures) + 1, "micro_batch": bound, "failures": failures}}
            return Outcome(value, details if failures else {})
        free_memory()
    raise AssertionError("unreachable: the last attempt returns or raises")


def free_memory() -> None:
    """Give what a failed attempt left behind back, to the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _bounds(defense: Defense, images: int) -> Iterator[int | None]:
    yield None
    if defense.bounds_memory:
        own = getattr(defense, "micro_batch", None) or images
        yield from (size for size in LADDER if size < own)


def _last(defense: Defense, images: int) -> int | None:
    return list(_bounds(defense, images))[-1]


def _size(bound: int | None) -> str:
    return "its own micro-batches" if bound is None else f"micro-batches of {bound}"
