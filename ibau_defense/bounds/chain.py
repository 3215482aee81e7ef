"""A network taken apart into the chain that Theorem 3 speaks of: σ_L(A_L σ_{L−1}(… σ_1(A_1 x)))."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ibau_defense.bounds.lipschitz import LIPSCHITZ, lipschitz_constant
from ibau_defense.bounds.operators import Convolution, Dense, Operator, WithBias, scale_rows

SUPPORTED = (
    "chains such as the simplified VGG or an nn.Sequential of Conv2d (zero padding), Linear, BatchNorm after either, "
    + ", ".join(kind.__name__.strip("_") for kind in LIPSCHITZ)
)


@dataclass(frozen=True)
class Layer:
    """A_i with what follows it up to A_{i+1}.

    Attributes:
        name: of the convolution or linear layer in the model.
        operator: A_i, BatchNorm folded in, and the bias as the weight of a constant.
        lipschitz: ϱ_i, the product over what follows.
        after: what follows: activation, pooling, dropout, flattening.
        shape: of one image's output of A_i, without the constant.
    """

    name: str
    operator: Operator
    lipschitz: float
    after: tuple[nn.Module, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Part:
    """A layer in the making: bias apart."""

    name: str
    operator: Dense | Convolution
    bias: Tensor
    shape: tuple[int, ...]
    after: tuple[nn.Module, ...] = ()
    lipschitz: float = 1.0


def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Layer, ...]:
    """The chain that ``model`` is in evaluation mode, checked against ``model`` itself on random images.

    BatchNorm in evaluation mode is the affine map z ↦ s(z − m) + t, s = w/√(v + ε): rows scaled by s, and a bias.
    Theorem 3 has no biases. Where the model has some, every layer becomes A_i = [[A, b], [0, 1]] on (x, 1), whose
    constant passes the nonlinearities unchanged (so ϱ_i ≥ 1 there): the same function, and the theorem's form.

    Args:
        model: left as it is.
        image_shape: (C, H, W).

    Raises:
        ValueError: the model is no such chain; one line naming the module and what is supported.
    """
    copied = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        found = _assembled(list(_parts(copied, image_shape)))
        images = torch.rand(3, *image_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected, same = copied(images), run(found, images)
    if expected.shape != same.shape or not torch.allclose(expected, same, rtol=1e-6, atol=1e-9):
        raise _refused(f"{type(model).__name__}, which computes something else than its modules one after the other")
    return found


def run(chain: tuple[Layer, ...], images: Tensor) -> Tensor:
    """The chain's own forward pass, from the operators: (n, C, H, W) float64 to (n, k) logits."""
    flat = images.flatten(1)
    if isinstance(chain[0].operator, WithBias):
        flat = torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)
    for layer in chain:
        flat = layer.operator.apply(flat)
        keeps_one = isinstance(layer.operator, WithBias) and layer.operator.keeps_one
        value, one = (flat[:, :-1], flat[:, -1:]) if keeps_one else (flat, flat[:, :0])
        value = value.unflatten(1, layer.shape)
        for module in layer.after:
            value = module(value)
        flat = torch.cat([value.flatten(1), one], dim=1)
    return flat


def _parts(model: nn.Module, image_shape: tuple[int, ...]) -> Iterator[_Part]:
    part: _Part | None = None
    shape: tuple[int, ...] = image_shape
    for name, module in model.named_modules(remove_duplicate=False):
        if next(module.children(), None) is not None:
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            if part is not None:
                yield part
            part, shape = _linear_part(name, module, shape)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            part = _folded(part, name, module)
        else:
            part, shape = _followed(part, name, module, shape)
    if part is None:
        raise _refused(f"{type(model).__name__} without a layer of weights")
    yield part


def _linear_part(name: str, module: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> tuple[_Part, tuple[int, ...]]:
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        if math.prod(shape) != module.in_features:  # flattening may be the model's own, no module's
            raise _refused(f"{name}: a Linear of {module.in_features} inputs on values of shape {list(shape)}")
        operator: Dense | Convolution = Dense(weight)
        out: tuple[int, ...] = (module.out_features,)
        bias = torch.zeros(out, dtype=weight.dtype) if module.bias is None else module.bias.detach()
        return _Part(name, operator, bias, out), out
    if module.padding_mode != "zeros" or isinstance(module.padding, str) or len(shape) != 3 or (
        shape[0] != module.in_channels
    ):  # fmt: skip
        raise _refused(f"{name}: {module} on values of shape {list(shape)}")
    stride, padding, dilation = (cast("tuple[int, int]", a) for a in (module.stride, module.padding, module.dilation))
    channels, height, width = shape
    operator = Convolution(weight, (channels, height, width), stride, padding, dilation, module.groups)
    out = operator.output_shape
    bias = torch.zeros(out[0], dtype=weight.dtype) if module.bias is None else module.bias.detach()
    return _Part(name, operator, bias, out), out


def _folded(part: _Part | None, name: str, module: Any) -> _Part:
    if part is None or part.after or module.running_mean is None:
        raise _refused(f"{name}: a {type(module).__name__} that does not follow its layer, or keeps no statistics")
    scale = (module.running_var + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight.detach()
    bias = (part.bias - module.running_mean) * scale
    bias = bias if module.bias is None else bias + module.bias.detach()
    return replace(part, operator=scale_rows(part.operator, scale), bias=bias)


def _followed(
    part: _Part | None, name: str, module: nn.Module, shape: tuple[int, ...]
) -> tuple[_Part | None, tuple[int, ...]]:
    try:
        constant = lipschitz_constant(module)
    except ValueError as error:
        raise _refused(f"{name}: {error}") from None
    if constant is None:
        raise _refused(f"{name}: {type(module).__name__}")
    if part is None:
        if not isinstance(module, nn.Identity | nn.Flatten | nn.modules.dropout._DropoutNd):
            raise _refused(f"{name}: {type(module).__name__} before the first layer of weights")
        return None, tuple(module(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    out = tuple(module(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    return replace(part, after=(*part.after, module), lipschitz=part.lipschitz * constant), out


def _assembled(parts: list[_Part]) -> tuple[Layer, ...]:
    biased = any(bool(part.bias.any()) for part in parts)
    found = []
    for part in parts:
        last = part is parts[-1]
        operator: Operator = part.operator
        if biased:
            each = operator.outputs // len(part.bias)
            operator = WithBias(operator, part.bias.repeat_interleave(each), keeps_one=not last)
        constant = max(1.0, part.lipschitz) if biased and not last else part.lipschitz
        found.append(Layer(part.name, operator, constant, part.after, part.shape))
    return tuple(found)


def _refused(found: str) -> ValueError:
    return ValueError(f"model: found {found}; expected {SUPPORTED}")
