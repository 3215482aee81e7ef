"""Named settings of the unlearning loop: what the paper prints, what its authors ran, and ablations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from ibau_defense.ascent import Ascent
from ibau_defense.curvature import CurvatureKind, MixedKind
from ibau_defense.guard import GuardSettings
from ibau_defense.solvers import FirstTerm, FixedPoint, Solver


@dataclass(frozen=True)
class Recipe:
    """Every choice Algorithm 1 leaves open.

    Attributes:
        rounds: passes over the clean set.
        batch_size: images of one outer step; None for the whole clean set.
        shuffle: draw new mini-batches each round.
        delta_per: one δ for every outer ``step``, found on that step's images, as Algorithm 1 stands; or one a
            ``round``, found on all mini-batches in turn, as in the authors' notebooks.
        ascent: the inner maximisation; ``steps=0`` with ``delta_per="round"`` means one step a mini-batch.
        ascent_labels: the loss the ascent raises is of the ``true`` labels, as in equation (1), or of the model's
            own ``predicted`` labels, as in the notebooks.
        clip: evaluate the model at clip(x + δ, 0, 1).
        penalty: r of the penalised objective H − r‖δ‖²; 0 for equation (1).
        implicit: False drops the implicit term of equation (2): Danskin's direct gradient alone.
        response_images: the stationarity condition is that of the ``same`` images and labels the outer step uses,
            of the ``first_batch`` with its true labels, as in the notebooks, or of the
            ``carriers`` alone, the images of the outer step that carry δ, at a share of the price.
        boundary: differentiate the ball-constrained maximiser (``Response.ball``) instead of equation (3).
        solver, curvature, mixed, positive: see ``Response``.
        carriers: share of a mini-batch's images that carry δ in the outer loss; 1 in equation (1), 0.01 in the
            notebooks.
        rounding: how the share becomes a number of images: ``down``, as in the notebooks, where a mini-batch too
            small for one carrier is an error; or ``up``, where every mini-batch has at least one.
        outer_optimizer, outer_lr: β and its method; the optimiser's state lasts over the rounds.
        outer_steps: outer steps a round; None for one a mini-batch.
        implicit_share: rescale the implicit term to this share of the direct term's norm; None leaves it as
            equation (2) has it. The truncated series of an expanding map has an arbitrary size (``Solution.residual``),
            its direction is what it knows.
        guard: undo outer steps that cost the clean set too much (``GuardSettings``); None for none, as published.
        autocast: network passes in bfloat16, solver vectors and updates in float32.
        channels_last: memory layout of the network passes.
    """

    rounds: int = 1
    batch_size: int | None = None
    shuffle: bool = False
    delta_per: Literal["step", "round"] = "step"
    ascent: Ascent = field(default_factory=lambda: Ascent(steps=10, step_size=0.1, optimizer="adam"))
    ascent_labels: Literal["true", "predicted"] = "true"
    clip: bool = False
    penalty: float = 0.0
    implicit: bool = True
    response_images: Literal["same", "first_batch", "carriers"] = "same"
    boundary: bool = False
    solver: Solver = field(default_factory=lambda: FixedPoint(max_steps=5, step=0.1, rtol=0.0))
    curvature: CurvatureKind = "exact"
    mixed: MixedKind = "exact"
    positive: bool = False
    carriers: float = 1.0
    rounding: Literal["down", "up"] = "down"
    outer_optimizer: Literal["sgd", "adam"] = "sgd"
    outer_lr: float = 0.1
    outer_steps: int | None = None
    implicit_share: float | None = None
    guard: GuardSettings | None = None
    autocast: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.carriers <= 1:
            raise ValueError(f"carriers: found {self.carriers}; expected a share in (0, 1]")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size: found {self.batch_size}; expected at least 1")

    def carried(self, count: int) -> int:
        """How many of ``count`` images carry δ."""
        exact = count * self.carriers
        return math.ceil(exact) if self.rounding == "up" else int(exact)


PAPER = Recipe()
"""Algorithm 1 to the letter: δ from zero for every step, T projected ascent steps on H itself, five fixed-point
steps on ∇²₁H of the same images, θ ← θ − β∇ψ̃, every image carrying δ, the rate 0.1 of Appendix A.4 in both loops."""

REFERENCE = Recipe(
    batch_size=100,
    delta_per="round",
    ascent=Ascent(steps=0, step_size=10.0, optimizer="sgd", project="last"),
    ascent_labels="predicted",
    penalty=0.001,
    response_images="first_batch",
    carriers=0.01,
    outer_optimizer="adam",
    outer_lr=0.001,
)
"""The authors' published CIFAR-10 notebook: one ascent step of rate 10 a mini-batch of 100 on predicted labels,
projected once; then an Adam step a mini-batch, δ on one image in a hundred, five fixed-point steps of rate 0.1 on the
first mini-batch's penalised loss of true labels."""

REFERENCE_GTSRB = replace(REFERENCE, ascent=Ascent(steps=0, step_size=1.0, optimizer="adam", project="last"), clip=True)
"""The authors' GTSRB notebook: as ``REFERENCE``, with Adam of rate 1 in the ascent and inputs clipped to [0, 1]."""

FAST = Recipe(
    rounds=4,
    batch_size=100,
    shuffle=True,
    delta_per="round",
    ascent=Ascent(steps=6, step_size=0.4, optimizer="normalised", relative=True),
    clip=True,
    response_images="carriers",
    solver=FirstTerm(),
    curvature="directional",
    mixed="directional",
    implicit_share=0.5,
    carriers=0.2,
    rounding="up",
    outer_optimizer="adam",
    outer_lr=0.0005,
    outer_steps=8,
    guard=GuardSettings(),
    autocast=True,
    channels_last=True,
)
"""Ours: see ``docs/engine.md``."""

RECIPES: dict[str, Recipe] = {"paper": PAPER, "reference": REFERENCE, "reference_gtsrb": REFERENCE_GTSRB, "fast": FAST}
