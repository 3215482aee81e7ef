"""The linear maps of a network as the operators they are, and their norms.

A convolution is the matrix it stands for on images of one size, with its stride and zero padding; it is never formed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Operator(Protocol):
    """A linear map A from ``inputs`` to ``outputs`` numbers; vectors are flat, float64."""

    @property
    def inputs(self) -> int: ...

    @property
    def outputs(self) -> int: ...

    def apply(self, x: Tensor) -> Tensor:
        """A x: (b, inputs) to (b, outputs)."""
        ...

    def transpose(self, y: Tensor) -> Tensor:
        """Aᵀ y: (b, outputs) to (b, inputs)."""
        ...

    def incoming(self) -> Tensor:
        """(outputs,): for each output, the sum of the squares of its weights."""
        ...


@dataclass(frozen=True)
class Dense:
    """``weight``: (outputs, inputs) float64."""

    weight: Tensor

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def transpose(self, y: Tensor) -> Tensor:
        return y @ self.weight

    def incoming(self) -> Tensor:
        return self.weight.square().sum(dim=1)


@dataclass(frozen=True)
class Convolution:
    """A two-dimensional convolution with zero padding on images of one size.

    Attributes:
        weight: (O, C / groups, h, w) float64.
        image_shape: (C, H, W) of what it is applied to.
        stride, padding, dilation: (vertical, horizontal).
    """

    weight: Tensor
    image_shape: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @cached_property
    def output_shape(self) -> tuple[int, int, int]:
        """(O, H', W')."""
        found = self._convolve(torch.zeros(1, *self.image_shape, dtype=self.weight.dtype), self.weight).shape
        return found[1], found[2], found[3]

    @property
    def inputs(self) -> int:
        return _product(self.image_shape)

    @property
    def outputs(self) -> int:
        return _product(self.output_shape)

    def apply(self, x: Tensor) -> Tensor:
        return self._convolve(x.unflatten(1, self.image_shape), self.weight).flatten(1)

    def transpose(self, y: Tensor) -> Tensor:
        images = y.unflatten(1, self.output_shape)
        lost = tuple(self._lost(axis) for axis in (0, 1))
        found = F.conv_transpose2d(
            images, self.weight, None, self.stride, self.padding, lost, self.groups, self.dilation
        )  # fmt: skip
        return found.flatten(1)

    def incoming(self) -> Tensor:
        """At the border fewer weights meet the image: squares convolved with an image of ones."""
        ones = torch.ones(1, *self.image_shape, dtype=self.weight.dtype)
        return self._convolve(ones, self.weight.square()).flatten()

    def _convolve(self, images: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(images, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def _lost(self, axis: int) -> int:
        """Rows at the far edge that the stride never reaches."""
        reach = self.dilation[axis] * (self.weight.shape[2 + axis] - 1) + 1
        covered = (self.output_shape[1 + axis] - 1) * self.stride[axis] - 2 * self.padding[axis] + reach
        return self.image_shape[1 + axis] - covered


@dataclass(frozen=True)
class WithBias:
    """x ↦ Ax + b as a linear map of (x, 1): [[A, b], [0, 1]], or [A, b] where nothing follows.

    Attributes:
        operator: A.
        bias: (A.outputs,) float64.
        keeps_one: whether the constant is handed on.
    """

    operator: Operator
    bias: Tensor
    keeps_one: bool

    @property
    def inputs(self) -> int:
        return self.operator.inputs + 1

    @property
    def outputs(self) -> int:
        return self.operator.outputs + self.keeps_one

    def apply(self, x: Tensor) -> Tensor:
        one = x[:, -1:]
        moved = self.operator.apply(x[:, :-1]) + one * self.bias
        return torch.cat([moved, one], dim=1) if self.keeps_one else moved

    def transpose(self, y: Tensor) -> Tensor:
        moved = y[:, :-1] if self.keeps_one else y
        one = (moved @ self.bias)[:, None] + (y[:, -1:] if self.keeps_one else 0)
        return torch.cat([self.operator.transpose(moved), one], dim=1)

    def incoming(self) -> Tensor:
        squares = self.operator.incoming() + self.bias.square()
        return torch.cat([squares, squares.new_ones(1)]) if self.keeps_one else squares


def scale_rows(operator: Dense | Convolution, scale: Tensor) -> Dense | Convolution:
    """diag(scale) A: each output, or output channel, times a number. ``scale``: (outputs or O,)."""
    shape = (-1, *[1] * (operator.weight.dim() - 1))
    return replace(operator, weight=operator.weight * scale.view(shape))


def two_one_norm(operator: Operator) -> float:
    """‖A‖_{2,1}: the sum over the outputs of the ℓ2 norms of their incoming weights.

    Equation (37) writes the layer X A with A ∈ R^{d×m} and sums over the m columns; the statement of Theorem 3 writes
    A(x + δ), where the same are rows.
    """
    return float(operator.incoming().sqrt().sum())


@dataclass(frozen=True)
class SpectralNorm:
    """What power iteration found.

    Attributes:
        value: ‖Av‖ for a unit v: ‖A‖_σ from below.
        status: ``converged``, or ``max_steps``.
        steps: products with AᵀA.
        residual: ‖AᵀAv − value² v‖ / value²; some singular value lies within that share of ``value``, above or below.
    """

    value: float
    status: Literal["converged", "max_steps"]
    steps: int
    residual: float


def spectral_norm(
    operator: Operator,
    *,
    tolerance: float = 1e-3,
    max_steps: int = 500,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> SpectralNorm:
    """‖A‖_σ = max ‖Av‖ / ‖v‖ by power iteration on AᵀA from a random start; needs A and Aᵀ applied, no matrix.

    Args:
        tolerance: relative residual at which it stops. The error of the value is second order in it where the largest
            singular value stands alone; where many lie close, as with convolutions, first order at worst.
        on_step: called with the step and the value so far.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(1, operator.inputs, generator=generator, dtype=torch.float64)
    v /= v.norm()
    square, residual = 0.0, float("inf")
    for step in range(1, max_steps + 1):
        pushed = operator.transpose(operator.apply(v))
        square = float((v * pushed).sum())
        size = float(pushed.norm())
        if size == 0:
            return SpectralNorm(0.0, "converged", step, 0.0)
        residual = float((pushed - square * v).norm()) / square
        v = pushed / size
        if on_step is not None:
            on_step(step, square**0.5)
        if residual <= tolerance:
            return SpectralNorm(square**0.5, "converged", step, residual)
    return SpectralNorm(square**0.5, "max_steps", max_steps, residual)


def _product(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]
