"""ELU at the price of exp on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ELU(nn.ELU):
    """``nn.ELU``; on the CPU it is max(x, exp(min(x, 0)) − 1), since torch's own calls expm1.

    There expm1 costs several times as much as exp on some processors, and ELU is then a large part of training and
    scoring the simplified VGG. The difference is exp's rounding, under 2 · 10⁻⁷ in float32; half precision is computed
    in float32, as torch does. Derivatives of every order are ELU's. Under ``torch.func`` it is torch's own: there a
    ``torch.autograd.Function`` is silently wrong by forward mode over forward mode.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Any shape and floating dtype; the same shape and dtype, a new tensor."""
        if self.alpha != 1 or self.inplace or values.device.type != "cpu" or _transformed():
            return super().forward(values)
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
