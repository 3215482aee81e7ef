"""What a user's own model and tensors may be, and what is said where they may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapters.protocols import PassCounter
from ibau_defense import IBAU, RECIPES, L2Ball, Network, UniversalLoss, linearise
from ibau_defense.probe import probe

IMAGES = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


class LeNet(nn.Module):
    """Flattens by ``view``, which no channels-last output takes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.convolution(images).relu().view(len(images), -1))
        return logits


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys, self.head = nn.Linear(24, 3 * 24), nn.Linear(24, 3)

    def forward(self, images: Tensor) -> Tensor:
        query, key, value = self.keys(images.transpose(1, 2).flatten(2)).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])
        logits: Tensor = self.head(mixed.mean(dim=(1, 2)))
        return logits


def network(*, last: type[nn.Module] = nn.Flatten) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ELU(), last(), nn.Linear(256, 3)).eval()


def unlearn(model: nn.Module, recipe: str = "fast", images: Any = IMAGES, labels: Any = LABELS, **changes: Any) -> Any:
    settings = replace(RECIPES[recipe], batch_size=None, carriers=1.0)
    return IBAU(ball=L2Ball(1.0), recipe=settings, rounds=1, **changes).unlearn(model, images, labels)


def test_a_network_that_views_its_maps_is_laid_out_as_it_wants() -> None:
    torch.manual_seed(0)
    model = LeNet().eval()
    assert not probe(model, IMAGES, LABELS, channels_last=True)
    assert probe(network(), IMAGES, LABELS, channels_last=True)
    plain = IBAU(recipe=replace(RECIPES["fast"], channels_last=False), rounds=1).unlearn(model, IMAGES, LABELS)
    found = IBAU(rounds=1).unlearn(model, IMAGES, LABELS)
    assert found.status == plain.status
    for one, other in zip(found.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", ["paper", "reference", "fast"])
def test_frozen_parameters_stay(recipe: str) -> None:
    model = network()
    model[0].requires_grad_(False)
    found = unlearn(model, recipe).model
    assert torch.equal(found[0].weight, model[0].weight)
    assert not torch.equal(found[4].weight, model[4].weight)
    assert not found[0].weight.requires_grad
    assert found[4].weight.requires_grad


def test_a_network_of_frozen_parameters_alone_is_a_function_of_them_all() -> None:
    model = network().requires_grad_(False)
    assert len(Network(model).theta) == 6
    with pytest.raises(ValueError, match=r"model: found 6 parameters, none of which takes a gradient"):
        unlearn(model)


def test_the_probe_is_a_pass_of_one_image() -> None:
    model, passes = network(), PassCounter()
    passes.attach(model)
    probe(model, IMAGES, LABELS, channels_last=True)
    assert passes.as_dict() == {"forward": 1, "backward": 0}


def test_hooks_that_do_something_do_it_in_the_probe() -> None:
    """Of two logits the hook makes three, as many as there are labels."""
    model = network()
    model[4] = nn.Linear(256, 2)
    with pytest.raises(ValueError, match="labels: found 2; expected 0 to 1"):
        unlearn(model)
    model.register_forward_hook(lambda module, inputs, output: nn.functional.pad(output, (0, 1)))
    assert unlearn(model).status == "ok"


@pytest.mark.parametrize("kind", ["exact", "forward_over_reverse", "gauss_newton"])
def test_attention_is_differentiated_twice(kind: Any) -> None:
    """Against central differences of the gradient, whose error is of the order of the squared step."""
    torch.manual_seed(0)
    loss = UniversalLoss(Network(Attention().double()), IMAGES.double(), LABELS)
    delta, v = (torch.randn(3, 8, 8, dtype=torch.float64) for _ in range(2))
    point = linearise(loss, delta, loss.network.theta, curvature=kind)
    if kind != "gauss_newton":
        step = 1e-4
        above, below = (linearise(loss, delta + s * step * v, loss.network.theta).gradient for s in (1, -1))
        torch.testing.assert_close(point.curvature(v), (above - below) / (2 * step), rtol=1e-5, atol=1e-9)
    assert point.curvature(v).isfinite().all()
    assert unlearn(Attention().eval(), "paper").status == "ok"


def test_what_has_no_second_derivative_is_told_with_the_way_out() -> None:
    model = network()
    model[2] = nn.Hardsigmoid()
    with pytest.raises(RuntimeError, match=r"derivative for .+ curvature and mixed 'directional' differentiate it"):
        unlearn(model, "paper")
    settings = replace(RECIPES["paper"], curvature="directional", mixed="directional")
    assert IBAU(ball=L2Ball(1.0), recipe=settings).unlearn(model, IMAGES, LABELS).status == "ok"


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(images), images


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: unlearn(network(), images=IMAGES.double()), r"images: found torch\.float64; expected torch\.float32"),
        (lambda: unlearn(network().double()), r"images: found torch\.float32; expected torch\.float64, as the model's"),
        (lambda: unlearn(network(), labels=LABELS + 1), r"labels: found 3; expected 0 to 2, the model's classes"),
        (lambda: unlearn(network(), labels=LABELS - 1), r"labels: found -1; expected class numbers"),
        (lambda: unlearn(network(), labels=LABELS[:, None]), r"labels: found shape \(40, 1\); expected \(n,\)"),
        (
            lambda: unlearn(network(), images=np.zeros((40, 3, 8, 8))),
            r"images: found ndarray; expected a torch\.Tensor",
        ),
        (lambda: unlearn(network(), images=IMAGES[:, 0]), r"images: found shape \(40, 8, 8\); expected \(n, C, H, W\)"),
        (lambda: unlearn(nn.Flatten()), r"model: found 0 parameters, none of which takes a gradient"),
        (lambda: unlearn(Pair()), r"model: found an output of tuple for one image; expected logits"),
        (lambda: unlearn(network()[:1]), r"model: found an output of shape \(1, 4, 8, 8\) for one image"),
        (lambda: IBAU(ball=10.0), r"ball: found 10\.0; expected a ball"),  # type: ignore[arg-type]
        (lambda: IBAU(rounds=0), "rounds: found 0; expected a whole number of at least 1"),
        (lambda: IBAU(micro_batch=0), "micro_batch: found 0; expected a whole number of at least 1"),
        (lambda: IBAU(rounds=1.5), r"rounds: found 1\.5; expected a whole number"),  # type: ignore[arg-type]
        (lambda: IBAU(rounds="2"), "rounds: found '2'; expected a whole number"),  # type: ignore[arg-type]
        (lambda: IBAU(seed="a"), "seed: found 'a'; expected a whole number"),  # type: ignore[arg-type]
        (lambda: IBAU(recipe=None), "recipe: found None; expected a Recipe or one of: paper"),  # type: ignore[arg-type]
        (lambda: L2Ball("10"), "radius: found '10'; expected a number"),  # type: ignore[arg-type]
        (
            lambda: unlearn(network(), images=IMAGES.movedim(1, 3)),
            r"images: found shape \(40, 8, 8, 3\); expected \(n, C, H, W\), channels before rows",
        ),
        (lambda: unlearn(nn.DataParallel(network())), r"model: found DataParallel; expected the module in it"),
        (lambda: unlearn(torch.jit.script(network())), r"model: found RecursiveScriptModule; expected a plain"),
        (lambda: unlearn(lambda images: images), r"model: found function; expected a plain torch\.nn\.Module"),
    ],
)
def test_what_does_not_fit_is_told_plainly(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_nothing_is_unlearned_where_nothing_has_a_gradient() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"called under torch\.inference_mode"):
        unlearn(network())


def test_a_models_own_error_is_passed_on() -> None:
    """Images of five channels are of no layout that could be guessed."""
    with pytest.raises(RuntimeError, match="channels"):
        unlearn(network(), images=torch.rand(40, 5, 8, 8))
