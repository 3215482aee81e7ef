"""No host synchronisation inside a solve or an ascent: one read each, however many steps."""

from __future__ import annotations

import pytest
import torch
from host_reads import counting_reads
from torch import Tensor, nn

from ibau_defense import BALLS, Ascent, MultiStart, Network, UniversalLoss, ascend, ascend_from_many
from ibau_defense.diagnostics import StepReport
from ibau_defense.implicit import Response, response_product
from ibau_defense.objective import value_and_gradients
from ibau_defense.solvers import SOLVERS, ConjugateGradient, FixedPoint
from ibau_defense.starts import survey_windows

DEVICE = "meta"  # stands for any device but the CPU


def test_the_counter_counts_what_makes_the_host_wait() -> None:
    x = torch.ones(3)
    with counting_reads() as seen:
        float(x[0]), bool(x.sum() > 1), x.tolist(), x[x > 0], int(x[1]), x.sum().item()
    assert seen == ["item", "item", "tolist", "nonzero", "item", "item"]
    with counting_reads("meta") as seen:
        y = torch.ones(3, device="meta")
        float(y[0]), y.tolist(), torch.ones(1).to("meta"), float(torch.ones(()))
    assert seen == ["item", "tolist"]
    with pytest.raises(NotImplementedError):
        y.cpu()


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("steps", [1, 30])
def test_a_solve_on_a_device_reads_once(name: str, steps: int) -> None:
    with counting_reads("meta") as seen:
        matrix, b = torch.eye(5, device=DEVICE), torch.ones(5, device=DEVICE)
        SOLVERS[name](max_steps=steps, damping=0.1).solve(lambda v: matrix @ v, b)
    assert seen == ["tolist"]


@pytest.mark.parametrize("name", list(SOLVERS))
def test_a_solve_on_the_cpu_reads_once_where_asked_to(name: str) -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, -1.0], dtype=torch.float64))
    b = torch.ones(5, dtype=torch.float64)
    with counting_reads() as seen:
        SOLVERS[name](max_steps=30, check_every=31).solve(lambda v: matrix @ v, b)
    assert seen == ["tolist"]


def on_a_device() -> UniversalLoss:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ELU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    images, labels = torch.rand(6, 3, 8, 8, device=DEVICE), torch.zeros(6, dtype=torch.int64, device=DEVICE)
    return UniversalLoss(Network(model.to(DEVICE)), images, labels, micro_batch=4)


@pytest.mark.parametrize("ball", list(BALLS))
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "normalised"])
def test_an_ascent_reads_once(ball: str, optimizer: str) -> None:
    with counting_reads("meta") as seen:
        loss = on_a_device()
        settings = Ascent(7, 0.1, optimizer)  # type: ignore[arg-type]
        ascend([loss, loss], loss.network.theta, torch.zeros(3, 8, 8, device=DEVICE), BALLS[ball](1.0), settings)
    assert seen == ["tolist"]


@pytest.mark.parametrize("steps", [1, 5])
def test_an_ascent_from_many_starts_reads_once(steps: int) -> None:
    with counting_reads("meta") as seen:
        loss = on_a_device()

        def draw(count: int) -> tuple[Tensor, Tensor]:
            index = torch.zeros(count, dtype=torch.int64, device=DEVICE)
            return loss.images[index], loss.labels[index]

        settings, shape = MultiStart(side=0.5, steps=steps), torch.Size((3, 8, 8))
        ascend_from_many(
            loss.network, draw, shape, loss.network.theta, BALLS["l2"](1.0), settings, survey_windows(settings, shape)
        )
    assert seen == ["tolist"]


@pytest.mark.parametrize("curvature", ["exact", "directional", "gauss_newton"])
@pytest.mark.parametrize("boundary", [False, True])
def test_an_outer_step_reads_once_for_the_solve_and_once_for_the_report(curvature: str, boundary: bool) -> None:
    """Products, boundary form, solve, then everything the report says about ascent, terms and solve."""
    ball = BALLS["l2"](1.0)
    with counting_reads("meta") as seen:
        loss = on_a_device()
        theta, zero = loss.network.theta, torch.zeros(3, 8, 8, device=DEVICE)
        climbed = ascend([loss], theta, zero, ball, Ascent(3, 0.1))
        seen.clear()
        value, pull, direct = value_and_gradients(loss, climbed.delta, theta, wrt_theta=True)
        response = Response(FixedPoint(max_steps=5), curvature, ball=ball if boundary else None)  # type: ignore[arg-type]
        assert pull is not None
        assert direct is not None
        implicit, solution = response_product(loss, climbed.delta, theta, pull, response)
        StepReport.measure(value, climbed, ball, direct, implicit, solution)
    assert seen == ["tolist", "tolist"]


def test_a_solve_that_has_converged_stays_where_it_is() -> None:
    """Without a read the loop cannot end early: the iterates after convergence must be the converged one."""
    values = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    b = torch.ones(3, dtype=torch.float64)
    early = ConjugateGradient(max_steps=50, rtol=1e-10, check_every=1).solve(lambda v: values * v, b)
    late = ConjugateGradient(max_steps=50, rtol=1e-10, check_every=51).solve(lambda v: values * v, b)
    assert torch.equal(early.x, late.x)
    assert (late.status, late.steps) == ("converged", early.steps)
