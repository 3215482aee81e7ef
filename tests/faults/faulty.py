"""Defenses that do what a defense must not. Imported, it makes them known by name, and the watchdog impatient."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from adapters import defenses
from adapters.defenses import Ibau
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages
from bench import engine, watchdog

watchdog.GRACE_SECONDS = 1.0
watchdog.LAST_RESORT_SECONDS = 1.0
MEBIBYTE = 2**20
PATIENCE = 400.0
"""Seconds."""


class Raises(Defense):
    name: ClassVar[str] = "raises"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        raise RuntimeError("it broke\n\x1b[2J\udcff <script>alert(1)</script> $(touch here)")


class Nothing(Defense):
    name: ClassVar[str] = "returns_nothing"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        return None  # type: ignore[return-value]


class OtherShape(Defense):
    name: ClassVar[str] = "returns_another_shape"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        return DefenseResult(nn.Sequential(model, nn.Linear(context.num_classes, 7)))


class OtherStatus(Defense):
    name: ClassVar[str] = "returns_another_status"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        return DefenseResult(model, "excellent")


class NotANumber(Defense):
    """Tunes at a rate at which the loss becomes NaN, and does not notice."""

    name: ClassVar[str] = "diverges_unnoticed"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
        for _ in range(8):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(clean.images), clean.labels))
            optimizer.step()
        return DefenseResult(model.eval())


class Loops(Defense):
    name: ClassVar[str] = "hangs"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        while True:
            try:
                time.sleep(3600)
            except Exception:
                continue


class Stuck(Defense):
    """Waits for ever in native code and holds the interpreter's lock: no Python code of the process can run."""

    name: ClassVar[str] = "hangs_in_native_code"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock(mutex)
        lock(mutex)
        raise AssertionError("a mutex was locked twice")


class Hungry(Ibau):
    """I-BAU where each image of a pass takes 64 MiB more, and the process may grow by 200 MiB."""

    name: ClassVar[str] = "out_of_memory"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        before = resource.getrlimit(resource.RLIMIT_AS)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 200 * MEBIBYTE, before[1]))
        try:
            torch.empty((context.micro_batch or len(clean.labels)) * 64 * MEBIBYTE, dtype=torch.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        return super().run(model, clean, context)


class Greedy(Defense):
    """Wants more memory than there is, and cannot do with less."""

    name: ClassVar[str] = "out_of_memory_for_good"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        torch.empty(2**46)
        return DefenseResult(model)


class Exits(Defense):
    name: ClassVar[str] = "exits"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        sys.exit(3)


class Dies(Defense):
    name: ClassVar[str] = "kills_its_worker"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
        return DefenseResult(model)


class Waits(Defense):
    """Not faulty: goes on once there is a file of the name in ``IBAU_BENCH_WAIT_FOR``."""

    name: ClassVar[str] = "waits"

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        end = time.monotonic() + PATIENCE
        while not Path(os.environ["IBAU_BENCH_WAIT_FOR"]).exists():
            if time.monotonic() > end:
                raise RuntimeError("there was no file to go on with")
            time.sleep(0.05)
        return DefenseResult(model)


ALL = (
    Raises, Nothing, OtherShape, OtherStatus, NotANumber, Loops, Stuck, Hungry, Greedy, Exits, Dies,
)  # fmt: skip
for _one in (*ALL, Waits):
    defenses.DEFENSES.setdefault(_one.name, _one)


class Worker(engine.CellTrainable):  # type: ignore[misc]
    """The sweep's own worker. Unpickling it imports this module, which is all it is for."""


engine.CellTrainable = Worker
