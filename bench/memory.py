"""Peak memory of a defense."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""


class PeakMemory:
    """The most memory held at once between the creation of this and ``pause()``; what a pause holds is left out.

    On a CUDA device: the peak of torch's own allocator there, in bytes; the victim, the clean set and what the worker
    keeps there to score models on are included. On the CPU: by how much the peak of the process's resident memory
    exceeds what was resident at the start, after memory that earlier cells left to the C allocator was given back.
    What libraries keep for themselves (scratch buffers of kernels that ran before) is reused without showing up, so
    the CPU's figure is a lower bound. Linux forgets earlier peaks on request; elsewhere an earlier, higher peak hides
    this one, and the figure is 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._device = device
        self._start = 0
        if device.type == "cuda":
            gc.collect()  # what earlier cells left in cycles of references would count as this one's
        self.resume()
        if device.type != "cuda":
            self._start = _status("VmRSS") or _peak()

    def resume(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _give_back()  # what was freed during a pause would otherwise count as held
            _forget_peak()

    def pause(self) -> None:
        if self._device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(self._device))
        else:
            peak = _peak() - self._start
        self.bytes = max(self.bytes, peak)


def keep_freed_pages() -> None:
    """Have the C allocator keep large freed blocks for this process instead of returning each to the system.

    A training step frees and takes the same activations again, and each return costs a page fault for every 4 KiB.
    ``PeakMemory`` gives back what is kept before it measures. Only where the C library is glibc; elsewhere nothing
    changes.
    """
    try:
        adjust = ctypes.CDLL(None).mallopt
        adjust(_MMAP_THRESHOLD, 1 << 30)
        adjust(_TRIM_THRESHOLD, (1 << 31) - 1)
    except (AttributeError, OSError, TypeError):
        return


def _give_back() -> None:
    """Return the allocator's free pages to the system, where the C library is glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    found = _status("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is no such file or field."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
