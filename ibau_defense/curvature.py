"""Second derivatives of an objective at one point, as products with vectors; no matrix is ever formed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ibau_defense.graphs import Product
from ibau_defense.objective import Objective, Theta, UniversalLoss, graphs_of, value_and_gradients
from ibau_defense.parallel import ranks_of, total

CurvatureKind = Literal["exact", "forward_over_reverse", "directional", "gauss_newton"]
MixedKind = Literal["exact", "directional"]


@runtime_checkable
class HasOutputs(Protocol):
    """An objective that is a loss of outputs: what Gauss–Newton needs."""

    def outputs(self, delta: Tensor, theta: Theta) -> Tensor: ...

    def loss_of_outputs(self, outputs: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Linearisation:
    """The derivatives of G at (δ, θ).

    Attributes:
        find_gradient: () ↦ ∇₁G, the shape of δ; read it as ``gradient``.
        curvature: v ↦ ∇²₁G v, the shape of δ.
        mixed: w ↦ ∇_θ ⟨∇₁G, w⟩ = (∇²₁₂G)ᵀ w, one tensor a parameter.
    """

    find_gradient: Callable[[], Tensor]
    curvature: Callable[[Tensor], Tensor]
    mixed: Callable[[Tensor], Theta]

    @cached_property
    def gradient(self) -> Tensor:
        """Found when first asked for: a first-order product does without it, and it costs a pass."""
        return self.find_gradient()


def check_kinds(curvature: str, mixed: str) -> None:
    """Raise ``ValueError`` for a way to form products that there is not."""
    for name, value, kinds in (
        ("curvature", curvature, get_args(CurvatureKind)),
        ("mixed", mixed, get_args(MixedKind)),
    ):
        if value not in kinds:
            raise ValueError(f"{name}: found {value!r}; expected one of: {', '.join(kinds)}")


def linearise(
    objective: Objective,
    delta: Tensor,
    theta: Theta,
    *,
    curvature: CurvatureKind = "exact",
    mixed: MixedKind = "exact",
    relative_step: float | None = None,
) -> Linearisation:
    """Linearise ∇₁G at (δ, θ).

    ``exact`` differentiates the gradient's own graph (double backward). The graph is built once and serves every
    product, but for an objective of several parts, where each product builds one part's graph at a time so that
    memory stays that of one ∇₁G.
    ``forward_over_reverse`` is ``torch.func.jvp`` of the gradient: exact, without a stored graph.
    ``directional`` is the central difference (∇G(δ + εv) − ∇G(δ − εv)) / 2ε: two first-order passes.
    ``gauss_newton`` is Jᵀ S J with J = ∂outputs/∂δ and S the Hessian of the loss in the outputs: positive
    semi-definite by construction; it drops the curvature of the network itself.

    Args:
        relative_step: ε‖v‖ / max(‖δ‖, 1) of the directional products; by default the cube root of the machine
            epsilon of the network's precision, where truncation and rounding errors meet.
    """
    check_kinds(curvature, mixed)
    delta, theta = delta.detach(), tuple(parameter.detach() for parameter in theta)
    shared = _Graph(objective, delta, theta) if "exact" in (curvature, mixed) else None
    step = relative_step or _default_step(objective, delta)
    curvatures: dict[CurvatureKind, Callable[[Tensor], Tensor]] = {
        "forward_over_reverse": lambda v: _forward_over_reverse(objective, delta, theta, v),
        "directional": lambda v: _difference(objective, delta, theta, v, step, wrt_theta=False)[0],
        "gauss_newton": lambda v: _gauss_newton(objective, delta, theta, v),
    }
    if shared:
        curvatures["exact"] = shared.curvature
    product = shared.mixed if shared and mixed == "exact" else None
    return Linearisation(
        shared.gradient if shared else (lambda: _gradient(objective, delta, theta)),
        curvatures[curvature],
        product or (lambda w: _difference(objective, delta, theta, w, step, wrt_theta=True)),
    )


class _Built(NamedTuple):
    """∇₁G at (``point``, ``theta``), leaves both, with its graph."""

    point: Tensor
    theta: Theta
    gradient: Tensor


class _Graph:
    """∇₁G with its own graph: kept for an objective of one part, rebuilt part by part for several.

    Where ranks share the objective, each keeps the graph of its own part; products are summed over the ranks.
    """

    def __init__(self, objective: Objective, delta: Tensor, theta: Theta) -> None:
        self._parts = list(objective.parts())
        self._delta = delta.detach().requires_grad_(True)
        self._theta = tuple(parameter.detach().requires_grad_(True) for parameter in theta)
        self._objective = objective
        self._replayed = self._stages() if len(self._parts) == 1 else None
        alone = len(self._parts) == 1 and self._replayed is None
        self._kept = self._build(self._parts[0]) if alone else None

    def _build(self, part: Objective) -> Tensor:
        return _with_graph(part, self._delta, self._theta)

    def _stages(self) -> Product | None:
        """The products of one part, replayed from recordings; None where they are formed plainly."""
        part, graphs = self._parts[0], graphs_of(self._parts[0])
        if graphs is None:
            return None
        loss = cast(UniversalLoss, part)

        def build(delta: Tensor, *tensors: Tensor) -> _Built:
            # leaves of its own: others may belong to graphs of another stream, which a capture would be drawn into
            point, *theta = (one.detach().requires_grad_(True) for one in (delta, *self._theta))
            return _Built(point, tuple(theta), _with_graph(loss.with_tensors(tensors), point, tuple(theta)))

        def curvature(built: _Built, v: Tensor) -> list[Tensor]:
            return _again(built.gradient, (built.point,), v, keep=True)

        def mixed(built: _Built, v: Tensor) -> list[Tensor]:
            return _again(built.gradient, built.theta, v, keep=True)

        count = len(loss.images)
        images = {"build": (count, count), "curvature": (0, count), "mixed": (0, count)}
        return graphs.stages(
            ("exact", loss.settings), build, {"curvature": curvature, "mixed": mixed},
            (self._delta.detach(), *loss.tensors()), self._delta, self._theta, images,
        )  # fmt: skip

    def gradient(self) -> Tensor:
        if self._kept is not None and ranks_of(self._objective) is None:
            return self._kept.detach()
        return _gradient(self._objective, self._delta, self._theta)

    def _product(self, which: str, v: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        if self._replayed is not None:
            return total(self._objective, self._replayed(which, v))
        sums = [torch.zeros_like(x) for x in inputs]
        for part in self._parts:
            gradient = self._kept if self._kept is not None else self._build(part)
            found = _again(gradient, inputs, v, keep=self._kept is not None)
            sums = [a + b for a, b in zip(sums, found, strict=True)]
        return total(self._objective, sums)

    def curvature(self, v: Tensor) -> Tensor:
        return self._product("curvature", v, (self._delta,))[0]

    def mixed(self, w: Tensor) -> Theta:
        return tuple(self._product("mixed", w, self._theta))


@contextmanager
def _differentiable_twice() -> Iterator[None]:
    """Attention by plain products inside: its fused kernels have one derivative. Names what has no second one."""
    with sdpa_kernel(SDPBackend.MATH):
        try:
            yield
        except RuntimeError as error:
            if "derivative for" not in str(error):
                raise
            raise RuntimeError(
                f"{error}: this network cannot be differentiated twice; curvature and mixed 'directional' "
                "differentiate it once"
            ) from error


def _with_graph(part: Objective, delta: Tensor, theta: Theta) -> Tensor:
    """∇₁G of one part with the graph to differentiate it again."""
    with torch.enable_grad(), _differentiable_twice():
        (gradient,) = torch.autograd.grad(part(delta, theta), delta, create_graph=True)
    return gradient


def _again(gradient: Tensor, inputs: tuple[Tensor, ...], v: Tensor, *, keep: bool) -> list[Tensor]:
    """∇⟨gradient, v⟩ in ``inputs``, detached; zero where it does not depend on them."""
    if not gradient.requires_grad:  # G is linear in δ and free of θ
        return [torch.zeros_like(x) for x in inputs]
    with _differentiable_twice():
        found = torch.autograd.grad(gradient, inputs, v, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g.detach() for g, x in zip(found, inputs, strict=True)]


def _gradient(objective: Objective, delta: Tensor, theta: Theta) -> Tensor:
    return cast(Tensor, value_and_gradients(objective, delta, theta)[1])


def _forward_over_reverse(objective: Objective, delta: Tensor, theta: Theta, v: Tensor) -> Tensor:
    product = torch.zeros_like(delta)
    for part in objective.parts():
        with torch.enable_grad(), _differentiable_twice():
            gradient = torch.func.grad(lambda d, p=part: p(d, theta))
            found = torch.func.jvp(gradient, (delta,), (v,))[1]
        product = product + found.detach()
    return total(objective, [product])[0]


def _default_step(objective: Objective, delta: Tensor) -> float:
    network = getattr(objective, "network", None)
    dtype = getattr(network, "autocast", None) or delta.dtype
    return math.pow(torch.finfo(dtype).eps, 1 / 3)


def _difference(
    objective: Objective, delta: Tensor, theta: Theta, v: Tensor, step: float, *, wrt_theta: bool
) -> tuple[Tensor, ...]:
    """(∇G(δ + εv) − ∇G(δ − εv)) / 2ε, of δ or of θ; zero where v is."""
    tiny = torch.finfo(v.dtype).tiny
    epsilon = step * delta.norm().clamp(min=1.0) / v.norm().clamp(min=tiny)
    above, below = (
        value_and_gradients(objective, delta + sign * epsilon * v, theta, wrt_delta=not wrt_theta, wrt_theta=wrt_theta)
        for sign in (1.0, -1.0)
    )
    index = 2 if wrt_theta else 1
    pairs = zip(above[2] or (), below[2] or (), strict=True) if wrt_theta else ((above[index], below[index]),)
    live = (v.norm() > 0).to(v.dtype)
    return tuple(live * (a - b) / (2 * epsilon) for a, b in pairs)  # type: ignore[operator]


def _gauss_newton(objective: Objective, delta: Tensor, theta: Theta, v: Tensor) -> Tensor:
    product = torch.zeros_like(delta)
    for part in objective.parts():
        if not isinstance(part, HasOutputs):
            raise ValueError("curvature: gauss_newton needs an objective with outputs() and loss_of_outputs()")
        product = product + _gauss_newton_part(part, delta, theta, v)
    return total(objective, [product])[0]


def _gauss_newton_part(part: HasOutputs, delta: Tensor, theta: Theta, v: Tensor) -> Tensor:
    with torch.enable_grad(), _differentiable_twice():
        outputs, moved = torch.func.jvp(lambda d: part.outputs(d, theta), (delta,), (v,))[:2]
        bend = torch.func.jvp(torch.func.grad(part.loss_of_outputs), (outputs.detach(),), (moved.detach(),))[1]
        point = delta.detach().requires_grad_(True)
        (product,) = torch.autograd.grad(part.outputs(point, theta), point, bend.detach())
    return product.detach()
