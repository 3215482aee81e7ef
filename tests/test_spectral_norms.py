"""Operators of layers against the dense matrices they stand for, and networks against their chains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters import models
from ibau_defense.bounds import network_norms, spectral_norm, two_one_norm
from ibau_defense.bounds.chain import layers, run
from ibau_defense.bounds.lipschitz import LIPSCHITZ, lipschitz_constant
from ibau_defense.bounds.operators import Convolution, Dense, Operator, WithBias


def dense(operator: Operator) -> Tensor:
    """(outputs, inputs): the columns that the operator gives to unit vectors."""
    return operator.apply(torch.eye(operator.inputs, dtype=torch.float64)).T


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def convolutions(chosen: st.DrawFn) -> Convolution:
    groups = chosen(st.sampled_from([1, 2]))
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    kernel = chosen(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return Convolution(
        draw(2 * groups, chosen(st.integers(1, 2)), *kernel, seed=chosen(st.integers(0, 999))),
        image_shape=(0, chosen(st.integers(5, 7)), chosen(st.integers(5, 7))),
        stride=chosen(pair),
        padding=chosen(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=chosen(pair),
        groups=groups,
    )


@settings(max_examples=25)
@given(found=convolutions())
def test_a_convolution_is_its_dense_matrix(found: Convolution) -> None:
    shape = (found.weight.shape[1] * found.groups, *found.image_shape[1:])
    operator = Convolution(found.weight, shape, found.stride, found.padding, found.dilation, found.groups)
    matrix = dense(operator)
    assert matrix.shape == (operator.outputs, operator.inputs)
    back = operator.transpose(torch.eye(operator.outputs, dtype=torch.float64))
    assert torch.allclose(back, matrix, atol=1e-12)
    assert torch.allclose(operator.incoming(), matrix.square().sum(dim=1))
    assert two_one_norm(operator) == pytest.approx(float(matrix.norm(dim=1).sum()))
    power = spectral_norm(operator, tolerance=1e-5, max_steps=5000)
    exact = float(torch.linalg.svdvals(matrix)[0])
    assert power.value <= exact * (1 + 1e-12)
    assert power.value == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("keeps_one", [True, False])
def test_a_bias_is_the_weight_of_a_constant(keeps_one: bool) -> None:
    operator = WithBias(Dense(draw(3, 4)), draw(3, seed=1), keeps_one)
    matrix = dense(operator)
    assert matrix.shape == (operator.outputs, operator.inputs) == (3 + keeps_one, 5)
    assert torch.equal(matrix[:3], torch.cat([draw(3, 4), draw(3, seed=1)[:, None]], dim=1))
    assert torch.equal(operator.transpose(torch.eye(operator.outputs, dtype=torch.float64)), matrix)
    assert torch.allclose(operator.incoming(), matrix.square().sum(dim=1))


def test_power_iteration_says_when_it_stopped_early_and_knows_zero() -> None:
    close = torch.diag(torch.tensor([1.0, 0.999, 0.998], dtype=torch.float64))
    early = spectral_norm(Dense(close), tolerance=1e-9, max_steps=3)
    assert (early.status, early.steps) == ("max_steps", 3)
    assert early.value < 1
    seen: list[float] = []
    late = spectral_norm(Dense(close), tolerance=1e-6, max_steps=100_000, on_step=lambda _, value: seen.append(value))
    assert late.status == "converged"
    assert late.value == pytest.approx(1)
    assert seen == sorted(seen)  # from below, and never down
    assert spectral_norm(Dense(torch.zeros(2, 3, dtype=torch.float64))).value == 0


def test_one_layer_that_was_cut_short_is_enough_to_say_so() -> None:
    first, last = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(4))
        last.weight.copy_(draw(2, 4))
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    assert network_norms(model, (1, 2, 2)).converged
    assert not network_norms(model, (1, 2, 2), tolerance=1e-9, max_steps=2).converged


@pytest.mark.parametrize(("bias", "expected"), [(False, [0.5, 1]), (True, [1, 1])])
def test_a_constant_is_handed_on_without_shrinking(bias: bool, expected: list[float]) -> None:
    """What averaging four cells takes from the values it does not take from the one beside them."""
    convolution = nn.Conv2d(1, 2, 3, padding=1, bias=bias)
    model = nn.Sequential(convolution, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3, bias=False))
    assert [layer.lipschitz for layer in layers(model, (1, 4, 4))] == expected


def vgg(size: int = 8) -> nn.Module:
    """The simplified VGG with BatchNorm statistics and biases that matter."""
    torch.manual_seed(0)
    model = models.build("simplified_vgg", 4, (3, size, size))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.add_(0.3 * torch.randn_like(tensor))  # type: ignore[union-attr, operator, arg-type]
            module.running_var.mul_(0.5 + torch.rand_like(module.running_var))  # type: ignore[union-attr, operator, arg-type]
    return model.train()


def test_the_simplified_vgg_is_its_chain() -> None:
    model = vgg()
    chain = layers(model, (3, 8, 8))
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    assert len(chain) == 7
    images = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        expected = model.eval()(images)
    assert torch.allclose(run(chain, images.double()).float(), expected, atol=1e-5)
    assert [layer.lipschitz for layer in chain] == [1.0] * 7


def test_the_norms_of_a_network_are_those_of_its_dense_matrices() -> None:
    model = vgg()
    norms = network_norms(model, (3, 8, 8), max_steps=1500)
    assert norms.constant
    assert norms.width == 32 * 8 * 8 + 1
    for layer, found in list(zip(layers(model, (3, 8, 8)), norms.layers, strict=True))[2:]:  # the first are the largest
        matrix = dense(layer.operator)
        assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-3), found.name
        assert found.two_one == pytest.approx(float(matrix.norm(dim=1).sum())), found.name
        assert (found.outputs, found.inputs) == matrix.shape


def test_the_product_of_the_norms_bounds_the_slope_of_the_network() -> None:
    model = vgg().eval().double()
    slope = network_norms(model, (3, 8, 8)).lipschitz
    first, second = (torch.rand(20, 3, 8, 8, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        moved = (model(first) - model(second)).norm(dim=1) / (first - second).flatten(1).norm(dim=1)
    assert float(moved.max()) <= slope


def test_without_biases_nothing_is_added() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False))
    norms = network_norms(model, (3, 2, 2))
    assert not norms.constant
    assert [(one.name, one.inputs, one.outputs) for one in norms.layers] == [("1", 12, 5), ("3", 5, 2)]
    assert norms.spread() == pytest.approx(
        norms.lipschitz * sum((one.two_one / one.spectral) ** (2 / 3) for one in norms.layers) ** 1.5
    )
    assert norms.spread(8.0) > norms.spread()


MODULES: list[nn.Module] = [
    nn.ReLU(), nn.ReLU6(), nn.Tanh(), nn.ELU(2.0), nn.LeakyReLU(0.2), nn.LeakyReLU(-3.0), nn.GELU(), nn.Dropout(0.5),
    nn.Identity(), nn.Flatten(), nn.MaxPool2d(2), nn.MaxPool2d(3, 1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2),
    nn.AvgPool2d(3, 1), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_the_lipschitz_constants_hold_and_zero_stays_zero(module: nn.Module) -> None:
    """The steepest slope that gradient ascent on ‖σ(u) − σ(v)‖ / ‖u − v‖ finds from random pairs."""
    module.eval()
    constant = lipschitz_constant(module)
    assert constant is not None
    assert float(module(torch.zeros(1, 2, 6, 6)).abs().max()) == 0
    torch.manual_seed(0)
    pair = 2 * torch.randn(2, 30, 2, 6, 6, dtype=torch.float64)
    steepest = 0.0
    for _ in range(30):
        pair.requires_grad_(True)
        out = (module(pair[0]) - module(pair[1])).flatten(1).norm(dim=1)
        slopes = out / (pair[0] - pair[1]).flatten(1).norm(dim=1)
        (gradient,) = torch.autograd.grad(slopes.sum(), pair)
        steepest = max(steepest, float(slopes.detach().max()))
        pair = (pair + 0.05 * gradient.sign()).detach()
    assert steepest <= constant * (1 + 1e-9)
    if "Pool" not in type(module).__name__:  # coordinate by coordinate: and the constant is not too large either
        line = torch.linspace(-6, 6, 2401, dtype=torch.float64)[:, None]
        assert float((module(line + 1e-4) - module(line)).abs().max()) / 1e-4 == pytest.approx(constant, rel=1e-2)
    assert {type(one) for one in MODULES} >= {kind for kind in LIPSCHITZ if kind.__name__[0] != "_"}


class Shortcut(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return images + super().forward(images)  # type: ignore[no-any-return]


REFUSED: list[tuple[Any, str]] = [
    (lambda: models.build("resnet18", 4, (3, 32, 32)), "found .*expected chains such as the simplified VGG"),
    (lambda: nn.Sequential(nn.Flatten(), Shortcut(nn.Linear(48, 48)), nn.Linear(48, 2)), "something else than its"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2), nn.Sigmoid()), "2: Sigmoid"),
    (lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)), "0: ReLU before the first layer"),
    (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)), "0: a BatchNorm2d that does not follow"),
    (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)), "2: a BatchNorm2d that does not follow"),
    (lambda: nn.Sequential(nn.Conv2d(3, 2, 3, padding_mode="circular", padding=1)), "0: Conv2d.*circular"),
    (lambda: nn.Sequential(nn.Conv2d(3, 2, 3, padding="same")), "0: Conv2d.*same"),
    (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(2, dilation=2)), "1: dilated"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(47, 2)), "1: a Linear of 47 inputs"),
    (lambda: nn.Sequential(nn.Flatten()), "without a layer of weights"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[message[:24] for _, message in REFUSED])
def test_a_network_that_is_no_chain_is_one_clear_error(build: Any, message: str) -> None:
    model = build()
    with pytest.raises(ValueError, match=message) as caught:
        network_norms(model, (3, 32, 32) if hasattr(model, "layer1") else (3, 4, 4))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model: found ")
