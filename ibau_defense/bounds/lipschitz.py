"""Lipschitz constants, in the ℓ2 norm, of the fixed nonlinearities between the layers; all have σ(0) = 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

GELU_SLOPE = 1.1290
"""max |GELU'|, at √2: Φ(√2) + √2 φ(√2) = 1.128904…, rounded up."""


def _pool(module: Any) -> tuple[int, int]:
    """(cells of a window, windows that a cell is in at most)."""
    cells, shared = 1, 1
    stride = module.kernel_size if module.stride is None else module.stride
    for size, step in zip(_pair(module.kernel_size), _pair(stride), strict=True):
        cells *= size
        shared *= math.ceil(size / step)
    return cells, shared


def _max_pool(module: Any) -> float:
    """√(windows that share a cell): 1 for the usual windows side by side.

    |max u − max v|² ≤ Σ over the window of (u − v)², and each cell is in so many windows.
    """
    if any(step != 1 for step in _pair(module.dilation)) or module.return_indices:
        raise ValueError("dilated or index-returning max pooling")
    return math.sqrt(_pool(module)[1])


def _average_pool(module: Any) -> float:
    """√(windows that share a cell / cells of a window), by Cauchy–Schwarz."""
    if module.divisor_override is not None or module.ceil_mode or not module.count_include_pad:
        raise ValueError("average pooling with another divisor than its window's size")
    cells, shared = _pool(module)
    return math.sqrt(shared / cells)


def _one_window(module: Any) -> float:
    """Averaging over windows that do not overlap shrinks; other adaptive sizes are refused."""
    if _pair(module.output_size) != (1, 1):
        raise ValueError("adaptive average pooling to more than one cell")
    return 1.0


def _elu(module: Any) -> float:
    return max(1.0, abs(float(module.alpha)))


def _leaky(module: Any) -> float:
    return max(1.0, abs(float(module.negative_slope)))


def _one(module: Any) -> float:
    return 1.0


def _gelu(module: Any) -> float:
    if module.approximate != "none":
        raise ValueError("GELU by its tanh approximation")
    return GELU_SLOPE


LIPSCHITZ: dict[type[nn.Module], Callable[[Any], float]] = {
    nn.Identity: _one,
    nn.Flatten: _one,
    nn.modules.dropout._DropoutNd: _one,  # in evaluation mode
    nn.ReLU: _one,
    nn.ReLU6: _one,
    nn.Tanh: _one,
    nn.ELU: _elu,
    nn.LeakyReLU: _leaky,
    nn.GELU: _gelu,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _one_window,
}
"""Bound on the Lipschitz constant by kind of module. Sigmoid and others with σ(0) ≠ 0 are left out on purpose."""


def lipschitz_constant(module: nn.Module) -> float | None:
    """ϱ of a fixed nonlinearity in evaluation mode, or None for a kind that is not known.

    Raises:
        ValueError: a known kind with a setting for which no constant is given here; the message names it.
    """
    kind = next((kind for kind in LIPSCHITZ if isinstance(module, kind)), None)
    return None if kind is None else LIPSCHITZ[kind](module)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
