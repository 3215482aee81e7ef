"""What data-parallel runs must give: each case computes named tensors, alone or as one rank of a group.

Run as ``python rank_cases.py RANK SIZE RENDEZVOUS OUT``, it is one of SIZE gloo processes and saves its results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from ibau_defense import IBAU, L2Ball, MultiStart, Network, Recipe, UniversalLoss, linearise, value_and_gradients
from ibau_defense.guard import GuardSettings
from ibau_defense.parallel import Ranks, ranks_from
from ibau_defense.recipes import FAST, PAPER, REFERENCE
from ibau_defense.solvers import ConjugateGradient

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Case = Callable[["ProcessGroup | None"], dict[str, Tensor]]
TIMEOUT = 300

MODES = ("exact", "forward_over_reverse", "directional", "gauss_newton")
# Smooth networks and plain outer steps: Adam would divide gradients that are zero but for rounding by their own size.
RECIPES: dict[str, Recipe] = {
    "paper": replace(PAPER, batch_size=20, outer_lr=0.05),
    "paper_boundary": replace(PAPER, batch_size=40, boundary=True, outer_lr=0.05, solver=ConjugateGradient(6)),
    "reference": replace(REFERENCE, batch_size=20, carriers=0.1, rounding="up", outer_optimizer="sgd", outer_lr=0.05),
    "reference_adam": replace(REFERENCE, batch_size=20, carriers=0.1, rounding="up"),
    "fast": replace(
        FAST,
        rounds=2, batch_size=9, outer_steps=3, autocast=False, outer_optimizer="sgd", outer_lr=0.05,
        starts=MultiStart(side=0.5, cells=(1, 2), whole=1, focused=5, images=3, steps=3, enough=10.0),
        guard=GuardSettings(every=3, loss_rise=5.0, accuracy_drop=1.0, final_drop=1.0),
    ),
}  # fmt: skip
RECIPES["fast_implicit"] = replace(RECIPES["fast"], implicit=True)


def tiny(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ELU(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(4 * 16, 5),
        )  # fmt: skip
    return model.to(dtype).eval()


def clean_set(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype), torch.arange(count) % 5


def derivatives(count: int, micro_batch: int | None, dtype: torch.dtype) -> Case:
    """H, both gradients and every curvature and mixed product, some images carrying δ."""

    def run(group: ProcessGroup | None) -> dict[str, Tensor]:
        network, (images, labels) = Network(tiny(dtype)), clean_set(count, dtype)
        generator = torch.Generator().manual_seed(2)
        delta, v = (0.1 * torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)).to(dtype)
        loss = UniversalLoss(
            network, images, labels, penalty=0.01, micro_batch=micro_batch, carriers=torch.arange(count) % 3 == 0,
            ranks=ranks_from(group),
        )  # fmt: skip
        value, pull, direct = value_and_gradients(loss, delta, network.theta, wrt_theta=True)
        found = {"value": value, "pull": pull, **{f"direct {i}": x for i, x in enumerate(direct or ())}}
        for mode in MODES:
            point = linearise(loss, delta, network.theta, curvature=mode)  # type: ignore[arg-type]
            found |= {f"{mode} gradient": point.gradient, f"{mode} curvature": point.curvature(v)}
            found |= {f"{mode} mixed {i}": x for i, x in enumerate(point.mixed(v))}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    return run


def unlearning(recipe: str, count: int, dtype: torch.dtype, micro_batch: int | None = None) -> Case:
    """The parameters after all rounds, and what the last round reports."""

    def run(group: ProcessGroup | None) -> dict[str, Tensor]:
        images, labels = clean_set(count, dtype)
        outcome = IBAU(L2Ball(1.0), RECIPES[recipe], micro_batch=micro_batch, group=group).unlearn(
            tiny(dtype), images, labels
        )
        assert outcome.status == "ok", outcome.reason
        report = outcome.rounds[-1]
        figures = [report.loss, report.inner_after, report.delta_norm, report.direct_norm, report.implicit_norm]
        return {name: x.detach() for name, x in outcome.model.named_parameters()} | {
            "report": torch.tensor(figures, dtype=dtype)
        }

    return run


CASES: dict[str, Case] = {
    f"{name} {str(dtype).removeprefix('torch.')}": case
    for dtype in (torch.float64, torch.float32)
    for name, case in {
        "derivatives even": derivatives(10, None, dtype),
        "derivatives uneven": derivatives(11, 4, dtype),
        "derivatives one image": derivatives(1, None, dtype),
        "paper": unlearning("paper", 33, dtype),
        "paper last batch of one": unlearning("paper", 21, dtype, micro_batch=6),
        "paper boundary": unlearning("paper_boundary", 33, dtype),
        "reference": unlearning("reference", 47, dtype),
        "fast": unlearning("fast", 23, dtype),
    }.items()
}
# What amplifies rounding, Adam's division and the central difference, in float64 only.
CASES["reference adam float64"] = unlearning("reference_adam", 47, torch.float64)
CASES["fast implicit float64"] = unlearning("fast_implicit", 23, torch.float64)


def refusal(group: ProcessGroup) -> str:
    """What a rank says that holds other images than the rest."""
    images, labels = clean_set(10, torch.float32)
    try:
        IBAU(recipe="paper", group=group).unlearn(tiny(torch.float32), images + distributed.get_rank(group), labels)
    except ValueError as error:
        return str(error)
    return "nothing"


def timeout(group: ProcessGroup) -> str:
    """How a run ends whose last rank alone is out of time."""
    images, labels = clean_set(40, torch.float32)
    late = distributed.get_rank(group) == distributed.get_world_size(group) - 1
    return IBAU(recipe=RECIPES["paper"], group=group).unlearn(
        tiny(torch.float32), images, labels, out_of_time=lambda: late
    ).status  # fmt: skip


def main(rank: int, size: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT)
    )
    group = distributed.group.WORLD
    assert group is not None
    assert ranks_from("world") == Ranks(group)
    results = {name: case(group) for name, case in CASES.items()}
    torch.save({"cases": results, "refusal": refusal(group), "timeout": timeout(group)}, f"{out}.{rank}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
