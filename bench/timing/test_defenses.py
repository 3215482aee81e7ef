"""Seconds of each defense to effect, with the ACC and the ASR that it ends with: the paper's Table 6."""

from __future__ import annotations

from typing import Any

import torch

from bench.cells import Cell
from bench.run_cell import CellRunner
from bench.timing.effect import time_to_effect
from bench.timing.scale import Scale


def test_defense(
    benchmark: Any, cell: Cell, runner: CellRunner, device: torch.device, scale: Scale, facts: dict[str, Any]
) -> None:
    benchmark.group = f"{cell.dataset}: defenses to effect"
    benchmark.extra_info.update(facts)
    time_to_effect(benchmark, cell, runner.prepare(cell), device, scale.budget)
