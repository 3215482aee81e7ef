"""Work that is recorded once and replayed with new inputs: CUDA graphs, and their bookkeeping.

A small network on a GPU spends its time launching kernels. A pass whose shapes stay the same is captured once as a
CUDA graph and then launched as a whole. The bookkeeping here knows nothing of CUDA; ``CudaRecorder`` does.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

LOGGER = logging.getLogger(__name__)

WARM_UP = 3
"""Plain runs beside the caller's stream before work is recorded."""

Work = Callable[..., Sequence[Tensor]]
Product = Callable[[str, Tensor], list[Tensor]]
Found = TypeVar("Found")


Images = tuple[int, int]
"""How many images a piece of work takes forward and backward through the network."""


class Tally(Protocol):
    """Counts images by hooks on the network, which a replay passes by; ``enabled`` turns the hooks' counts off."""

    enabled: bool

    def add(self, forward: int = 0, backward: int = 0) -> None: ...


class Recording(Protocol):
    """Recorded work; ``replay`` does it again on the tensors it was recorded with."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    """Records work that reads and writes tensors at fixed addresses."""

    def aside(self, work: Callable[[], Found]) -> Found:
        """Do the work plainly, where it will be recorded, so that nothing is set up for the first time then."""

    def record(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Recording, Sequence[Tensor]]:
        """The recording, and the tensors that each replay leaves its results in."""


class CudaRecorder:
    """Captures on a side stream, one a device; safe whichever stream the caller works on.

    Before plain work the side stream waits for the caller's stream, and the caller's for the side stream after it.
    A replay runs on the caller's current stream. All captures share one memory pool: their results are copied out
    before anything else is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _side_stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def aside(self, work: Callable[[], Found]) -> Found:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                return work()
        finally:  # of work that raised, too, the device may still do a part
            current.wait_stream(self.stream)

    def record(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Recording, Sequence[Tensor]]:
        try:
            return self._captured(work)
        except BaseException:
            self._mend()
            raise

    def _captured(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Recording, Sequence[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        capturing = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            try:
                with capturing:
                    found = work()
            finally:  # one that fails leaves the side stream as the current one
                torch.cuda.set_stream(current)
        return graph, found

    def _mend(self) -> None:
        """A failed capture leaves the device's generator in the state of one, so that the next dropout would raise, and
        its pool taken: one that succeeds, in another pool, brings the generator back. What the failed one held in its
        pool stays reserved."""
        self.pool = torch.cuda.graph_pool_handle()
        try:
            self._captured(lambda: (torch.zeros(1, device=self.device),))
        except RuntimeError as error:  # no memory even for this: the caller is to hear of the first failure
            LOGGER.warning("random numbers may be refused on %s from now on: %s", self.device, why(error))


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recorders: cuBLAS keeps a workspace, 32 MiB on Hopper, for every stream that it was ever used on."""
    return torch.cuda.Stream(device)


@dataclass
class _Entry:
    """One recorded piece of work: its input buffers, and for staged work what the first stage built."""

    inputs: list[Tensor]
    fixed: Sequence[Tensor]
    recordings: dict[str, tuple[Recording, Sequence[Tensor]]] = field(default_factory=dict)
    vector: Tensor | None = None
    built: Any = None
    holder: object = None
    images: Mapping[str, Images] = field(default_factory=dict)

    def load(self, inputs: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value)

    def replay(self, which: str) -> list[Tensor]:
        recording, results = self.recordings[which]
        recording.replay()
        return [one.clone() for one in results]


class Graphs:
    """Records what comes back with the same shapes, replays it from then on, and runs everything else as it is.

    The key of a piece of work is its name, its inputs' shapes, dtypes and strides, and the addresses of what is
    ``fixed``: read in place, the parameters. Work is run plainly the first time, recorded the second. The recording is
    trusted once its first replay agrees with the plain run; where it does not, or recording fails, the reason is
    logged and that work is run plainly for good.

    Args:
        most: recordings kept; each holds buffers on the device. Later work is run plainly.
        tolerance: the largest difference between replay and plain run, as a share of the largest entry.
        tally: told of the images of every replay, and not of those of recording.
    """

    def __init__(
        self, recorder: Recorder, *, most: int = 16, tolerance: float = 1e-3, tally: Tally | None = None
    ) -> None:
        self.recorder, self.most, self.tolerance, self.tally = recorder, most, tolerance, tally
        self.replays = 0
        self._seen: Counter[Hashable] = Counter()
        self._entries: dict[Hashable, _Entry] = {}
        self._refused: set[Hashable] = set()
        self._busy = False

    def run(
        self,
        name: Hashable,
        work: Work,
        inputs: Sequence[Tensor],
        fixed: Sequence[Tensor] = (),
        images: Images = (0, 0),
    ) -> list[Tensor]:
        """``work(*inputs)``, replayed where it can be.

        Args:
            work: a pure function of its arguments and of what ``fixed`` holds; it may not read values on the host.
            images: what it takes forward and backward.
        """
        key = _key(name, inputs, fixed)
        entry = self._entries.get(key)
        if entry is not None and not self._busy:
            entry.load(inputs)
            return self._replay(entry, "work")
        with self._whole(key not in self._refused):
            found = list(work(*inputs))
        if self._due(key):
            entry = self._entry(inputs, fixed, {"work": images})
            self._record(key, entry, {"work": lambda entry: work(*entry.inputs)}, {"work": found})
        return found

    def stages(
        self,
        name: Hashable,
        build: Callable[..., Any],
        products: Mapping[str, Callable[[Any, Tensor], Sequence[Tensor]]],
        inputs: Sequence[Tensor],
        like: Tensor,
        fixed: Sequence[Tensor] = (),
        images: Mapping[str, Images] | None = None,
    ) -> Product | None:
        """``(which, v) ↦ products[which](build(*inputs), v)``, ``build`` replayed once and each product as asked for.

        None where it has to be run plainly. ``like`` has the shape of every v. ``images`` are those of ``build`` and
        of each product.
        """
        key = _key(name, inputs, fixed)
        if self._busy:
            return None
        if key not in self._entries:
            if not self._due(key):
                return None
            ones = torch.ones_like(like)
            with silent(self.tally):
                whole = build(*inputs)
                plain = {which: list(product(whole, ones)) for which, product in products.items()}

            def first(entry: _Entry) -> Sequence[Tensor]:
                entry.built = build(*entry.inputs)
                return ()

            def later(which: str) -> Callable[[_Entry], Sequence[Tensor]]:
                return lambda entry: products[which](entry.built, _given(entry.vector))

            works = {"build": first, **{which: later(which) for which in products}}
            fresh = self._entry(inputs, fixed, images or {})
            fresh.vector = ones
            self._record(key, fresh, works, plain)
        entry = self._entries.get(key)
        return None if entry is None else self._product(entry, inputs)

    def _product(self, entry: _Entry, inputs: Sequence[Tensor]) -> Product:
        holder = object()

        def product(which: str, vector: Tensor) -> list[Tensor]:
            if entry.holder is not holder:  # another linearisation has used the buffers since
                entry.load(inputs)
                self._replay(entry, "build")
                entry.holder = holder
            _given(entry.vector).copy_(vector)
            return self._replay(entry, which)

        return product

    def _replay(self, entry: _Entry, which: str) -> list[Tensor]:
        self.replays += 1
        with self._whole(), silent(self.tally):
            found = entry.replay(which)
        if self.tally is not None:
            self.tally.add(*entry.images.get(which, (0, 0)))
        return found

    def _entry(self, inputs: Sequence[Tensor], fixed: Sequence[Tensor], images: Mapping[str, Images]) -> _Entry:
        buffers = [one.detach().clone(memory_format=torch.preserve_format) for one in inputs]
        return _Entry(buffers, fixed, images=images)

    @contextmanager
    def _whole(self, whole: bool = True) -> Iterator[None]:
        """Inside, work within work is part of the whole: neither recorded nor replayed by itself."""
        before = self._busy
        self._busy = before or whole
        try:
            yield
        finally:
            self._busy = before

    def _due(self, key: Hashable) -> bool:
        self._seen[key] += 1
        if self._busy or key in self._refused or self._seen[key] < 2:
            return False
        if len(self._entries) >= self.most:
            self._refuse(key, f"{self.most} recordings are kept already")
            return False
        return True

    def _refuse(self, key: Hashable, reason: str) -> None:
        self._refused.add(key)
        LOGGER.warning("not recorded, run plainly from now on: %s", reason)

    def _record(
        self,
        key: Hashable,
        entry: _Entry,
        works: Mapping[str, Callable[[_Entry], Sequence[Tensor]]],
        plain: Mapping[str, Sequence[Tensor]],
    ) -> None:
        """Record every work of ``works``, in order, and keep them if they give what was found plainly."""
        if not all(bool(one.isfinite().all()) for found in plain.values() for one in found if one.is_floating_point()):
            return  # nothing to compare with; the next time will do
        try:
            with self._whole(), silent(self.tally):
                for _ in range(WARM_UP):
                    self.recorder.aside(lambda: [work(entry) for work in works.values()])
                for which, work in works.items():
                    entry.recordings[which] = self.recorder.record(lambda work=work: work(entry))  # type: ignore[misc]
                for which in works:
                    self._compare(which, entry.replay(which), plain.get(which, ()))
        except (RuntimeError, ValueError) as error:  # torch's own errors of a capture, and those of _compare
            self._refuse(key, why(error))
        else:
            self._entries[key] = entry

    def _compare(self, which: str, replayed: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
        for a, b in zip(replayed, plain, strict=True):
            scale = float(b.double().abs().max()) if b.numel() else 0.0
            off = float((a.double() - b.double()).abs().max()) if b.numel() else 0.0
            if not off <= self.tolerance * scale + torch.finfo(torch.float32).tiny:
                raise ValueError(f"the replay of {which} is off by {off:g} where the largest entry is {scale:g}")


@contextmanager
def silent(tally: Tally | None) -> Iterator[None]:
    """Inside, the hooks of ``tally``, if there is one, count nothing."""
    if tally is None:
        yield
        return
    before, tally.enabled = tally.enabled, False
    try:
        yield
    finally:
        tally.enabled = before


def why(error: BaseException) -> str:
    """One line: ``error``, and the one it came of, since where an operation breaks a capture the capture fails too."""
    first: BaseException = error
    while first.__context__ is not None:
        first = first.__context__
    lines = [f"{type(one).__name__}: {(str(one).splitlines() or [''])[0]}" for one in (first, error)]
    return " → ".join(dict.fromkeys(lines))


def _given(vector: Tensor | None) -> Tensor:
    if vector is None:
        raise ValueError("vector: found none; expected the buffer of a staged recording")
    return vector


def _key(name: Hashable, inputs: Sequence[Tensor], fixed: Sequence[Tensor]) -> Hashable:
    return name, shapes(inputs), tuple((one.data_ptr(), tuple(one.shape), one.stride()) for one in fixed)


def shapes(inputs: Sequence[Tensor]) -> Hashable:
    """What work on other ``inputs`` must have in common with a recording of it: shapes, dtypes and strides."""
    return tuple((tuple(one.shape), one.dtype, one.stride()) for one in inputs)
