"""Layers that are cheap to differentiate twice; same parameters, same function, same derivatives.

torch's convolution forms the gradient of its weight in every double-backward pass, also where nobody asked for it
(half of the arithmetic of a curvature product on the simplified VGG, measured on a CPU); and its evaluation-mode
BatchNorm, an affine map, is differentiated as if its statistics were variable. Here the first derivative is written
with operations whose own derivative computes what is asked for and nothing else.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


class _Conv2d(torch.autograd.Function):
    """y = conv2d(x, W); ∂x is a transposed convolution, so that ∂²x is a plain convolution and nothing more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        layer: nn.Conv2d = ctx.layer
        stride, padding, dilation = (cast("tuple[int, int]", a) for a in (layer.stride, layer.padding, layer.dilation))
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            lost = tuple(
                x.shape[2 + i] - ((grad.shape[2 + i] - 1) * stride[i] - 2 * padding[i]
                                  + dilation[i] * (weight.shape[2 + i] - 1) + 1)
                for i in (0, 1)
            )  # fmt: skip
            grad_x = F.conv_transpose2d(grad, weight, None, stride, padding, lost, layer.groups, dilation)
        if ctx.needs_input_grad[1]:
            grad_weight = conv2d_weight(x, cast("Any", weight.shape), grad, stride, padding, dilation, layer.groups)
        return grad_x, grad_weight, None


class TwiceConv2d(nn.Conv2d):
    """``nn.Conv2d`` by another derivative."""

    def forward(self, input: Tensor) -> Tensor:
        out = cast(Tensor, _Conv2d.apply(input, self.weight, self))
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)


class TwiceBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` in evaluation mode, written as the affine map it is."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            raise ValueError("TwiceBatchNorm2d stands for evaluation mode only; call eval() first")
        scale = (cast(Tensor, self.running_var) + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -cast(Tensor, self.running_mean) * scale
        if self.bias is not None:
            shift = shift + self.bias
        return input * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def ease_double_backward(module: nn.Module) -> nn.Module:
    """Swap the layers of ``module`` in place for their twins above, where a twin is exact; returns ``module``."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            layer.__class__ = TwiceConv2d
        elif type(layer) is nn.BatchNorm2d and layer.track_running_stats:
            layer.__class__ = TwiceBatchNorm2d
    return module
