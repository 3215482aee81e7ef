"""ELU at the price of exp, where torch's own costs many times as much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _slow(version: str, capability: str) -> bool:
    """Whether torch's kernel of ELU on the CPU computes one element after the other.

    With AVX-512, torch 2.14 does so for expm1 and log1p in float32, at many times the cost; neither 2.13 nor 2.15
    does (`docs/performance.md`).
    """
    return version.startswith("2.14.") and capability == "AVX512"


SLOW_EXPM1 = _slow(torch.__version__, torch.backends.cpu.get_cpu_capability())
"""Whether ``ELU`` is computed by ``elu_by_exp`` in this process."""


class ELU(nn.ELU):
    """``nn.ELU``, which is a large part of the simplified VGG's cost on the CPU where its kernel is slow.

    There (``SLOW_EXPM1``) it is ``elu_by_exp``, except under ``torch.func``, where a ``torch.autograd.Function`` is
    silently wrong by forward mode over forward mode.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Any shape and floating dtype; the same shape and dtype, a new tensor."""
        plain = self.alpha == 1 and not self.inplace and values.device.type == "cpu"
        return elu_by_exp(values) if SLOW_EXPM1 and plain and not _transformed() else super().forward(values)


def elu_by_exp(values: Tensor) -> Tensor:
    """ELU of α = 1 as max(x, exp(min(x, 0)) − 1), of any shape and floating dtype, and its derivatives of every order.

    The difference from expm1 is exp's rounding, under 2 · 10⁻⁷ in float32; half precision is computed in float32, as
    torch does.
    """
    activated: Tensor = _Elu.apply(values)
    return activated


_transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


class _Elu(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor) -> Tensor:
        below = values.clamp(max=0)
        below = below if below.dtype == torch.float64 else below.float()
        below = below.exp_().sub_(1).to(values.dtype)
        return torch.maximum(values, below, out=below)  # exp(x) - 1 >= x, and both are 0 at 0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return _derivative(gradients[0], values)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return _derivative(tangents[0], values)


def _derivative(moved: Tensor, values: Tensor) -> Tensor:
    """``moved`` times ELU's derivative, by torch's own kernel: that one calls exp."""
    scaled: Tensor = torch.ops.aten.elu_backward(moved, 1, 1, 1, False, values)
    return scaled
