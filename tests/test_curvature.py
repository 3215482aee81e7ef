"""Every kind of curvature product against the others, on real architectures, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import models
from ibau_defense import Network, UniversalLoss, curvature, linearise, value_and_gradients
from ibau_defense.twice import TwiceConv2d, ease_double_backward


def classifier(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(name, 5, (3, 32, 32)).double()
    for module in model.modules():  # statistics of a trained network: away from 0 and 1
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def loss_of(model: nn.Module, micro_batch: int | None = None, **settings: object) -> UniversalLoss:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    return UniversalLoss(Network(model, **settings), images, labels, penalty=0.01, micro_batch=micro_batch)  # type: ignore[arg-type]


def perturbation(seed: int) -> Tensor:
    return 0.1 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", ["simplified_vgg", "resnet18"])
def test_exact_forward_and_directional_products_agree(name: str) -> None:
    objective = loss_of(classifier(name))
    delta, v, theta = perturbation(2), perturbation(3), objective.network.theta
    exact = linearise(objective, delta, theta)
    forward = linearise(objective, delta, theta, curvature="forward_over_reverse")
    assert relative(forward.curvature(v), exact.curvature(v)) < 1e-10
    # A kink of ReLU or max-pooling between δ ± εv is an error no step removes; ELU and most seeds have none.
    directional = linearise(objective, delta, theta, curvature="directional", mixed="directional", relative_step=1e-7)
    assert relative(directional.curvature(v), exact.curvature(v)) < 1e-5
    mixed, difference = exact.mixed(v), directional.mixed(v)
    total = torch.cat([x.flatten() for x in mixed])
    assert relative(torch.cat([x.flatten() for x in difference]), total) < 1e-5
    assert relative(exact.gradient, forward.gradient) < 1e-12


@pytest.mark.parametrize(("autocast", "epsilon"), [(None, 2.0**-52), (torch.bfloat16, 2.0**-7)])
@pytest.mark.parametrize("length", [0.25, 4.0])
def test_differences_are_central_and_their_step_is_a_cube_root_of_what_a_pass_rounds_to(
    autocast: torch.dtype | None, epsilon: float, length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a central difference is least about there; relative to δ, and to a pixel where that is smaller."""
    objective = loss_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).double(), autocast=autocast)
    delta, v = perturbation(2), perturbation(3)
    delta *= length / delta.norm()
    points: list[Tensor] = []
    plain = curvature.value_and_gradients

    def seen(objective: Any, delta: Tensor, *rest: Any, **more: Any) -> Any:
        points.append(delta.detach())
        return plain(objective, delta, *rest, **more)

    monkeypatch.setattr(curvature, "value_and_gradients", seen)
    product = linearise(objective, delta, objective.network.theta, curvature="directional").curvature
    points.clear()
    product(v)
    above, below = (point - delta for point in points)
    step = epsilon ** (1 / 3) * max(1.0, length)
    torch.testing.assert_close(above, step * v / v.norm())
    torch.testing.assert_close(below, -above)


@pytest.mark.parametrize("name", ["simplified_vgg", "resnet18"])
def test_gauss_newton_is_positive_semi_definite_and_symmetric(name: str) -> None:
    objective = loss_of(classifier(name))
    product = linearise(objective, perturbation(2), objective.network.theta, curvature="gauss_newton").curvature
    u, v = perturbation(4), perturbation(5)
    assert float((v * product(v)).sum()) > 0
    assert float((u * product(v)).sum()) == pytest.approx(float((v * product(u)).sum()), rel=1e-9)


def test_gauss_newton_is_exact_for_a_linear_network() -> None:
    """Without curvature of the network itself nothing is dropped."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).double()
    objective = loss_of(model)
    delta, v, theta = perturbation(2), perturbation(3), objective.network.theta
    exact = linearise(objective, delta, theta).curvature(v) + 2 * objective.penalty * v  # the penalty is not a loss
    assert relative(linearise(objective, delta, theta, curvature="gauss_newton").curvature(v), exact) < 1e-10


@pytest.mark.parametrize("kind", ["exact", "forward_over_reverse", "directional", "gauss_newton"])
@pytest.mark.parametrize("micro_batch", [1, 3, 4, 100])
def test_micro_batches_change_nothing_but_memory(kind: str, micro_batch: int) -> None:
    model = classifier("simplified_vgg")
    whole, parts = loss_of(model), loss_of(model, micro_batch)
    delta, v = perturbation(2), perturbation(3)
    one, many = (
        linearise(x, delta, x.network.theta, curvature=kind, relative_step=1e-6)  # type: ignore[arg-type]
        for x in (whole, parts)
    )
    assert relative(many.gradient, one.gradient) < 1e-12
    assert relative(many.curvature(v), one.curvature(v)) < 1e-8
    for a, b in zip(many.mixed(v), one.mixed(v), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_value_and_gradients_are_autograds() -> None:
    objective = loss_of(classifier("simplified_vgg"), micro_batch=3)
    delta, theta = perturbation(2).requires_grad_(), tuple(x.clone().requires_grad_() for x in objective.network.theta)
    expected = torch.autograd.grad(objective(delta, theta), (delta, *theta))
    value, wrt_delta, wrt_theta = value_and_gradients(objective, delta, theta, wrt_theta=True)
    assert wrt_delta is not None
    assert wrt_theta is not None
    assert float(value) == pytest.approx(float(objective(delta, theta).detach()))
    for found, oracle in zip((wrt_delta, *wrt_theta), expected, strict=True):
        assert torch.allclose(found, oracle, atol=1e-12)


@pytest.mark.parametrize("name", ["simplified_vgg", "resnet18", "densenet121"])
def test_eased_layers_have_the_same_derivatives(name: str) -> None:
    model = classifier(name)
    plain, eased = loss_of(model), loss_of(model, twice=True)
    assert any(isinstance(layer, TwiceConv2d) for layer in eased.network.module.modules())
    delta, v = perturbation(2), perturbation(3)
    a, b = (linearise(x, delta, x.network.theta) for x in (plain, eased))
    assert relative(b.gradient, a.gradient) < 1e-10
    assert relative(b.curvature(v), a.curvature(v)) < 1e-9
    assert relative(torch.cat([x.flatten() for x in b.mixed(v)]), torch.cat([x.flatten() for x in a.mixed(v)])) < 1e-9
    assert eased.network.module.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(0, 1), dilation=(2, 1), bias=False),
        nn.Conv2d(4, 4, 1, groups=4),
    ],
)
def test_eased_convolution_passes_gradgradcheck(layer: nn.Conv2d) -> None:
    eased = ease_double_backward(layer.double())
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(eased, (x,))
    assert torch.autograd.gradgradcheck(eased, (x,))


def test_unknown_curvature_is_refused() -> None:
    objective = loss_of(classifier("simplified_vgg"))
    with pytest.raises(ValueError, match="directional"):
        linearise(objective, perturbation(1), objective.network.theta, curvature="magic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mixed: found 'magic'; expected one of: exact, directional"):
        linearise(objective, perturbation(1), objective.network.theta, mixed="magic")  # type: ignore[arg-type]
