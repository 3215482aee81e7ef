"""Named settings of the unlearning loop: what the paper prints, what its authors ran, and ablations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from ibau_defense.ascent import Ascent
from ibau_defense.curvature import CurvatureKind, MixedKind
from ibau_defense.guard import GuardSettings
from ibau_defense.solvers import FirstTerm, FixedPoint, Solver
from ibau_defense.starts import MultiStart


@dataclass(frozen=True)
class Sharp:
    """How a network is treated that the survey found fragile all over the image.

    There a few small changes of the parameters the harm goes through are enough, and Adam, which moves every parameter
    alike, would only cost accuracy: the outer steps of the first phase go along the plain gradient instead.

    Attributes:
        harm: the median harm of a survey's starts, in nats, above which a network is treated so.
        step: length of an outer step of the first phase, as a share of ‖θ‖.
        carriers: stands in for ``Recipe.carriers``.
        outer_steps: stands in for ``Recipe.outer_steps``.
    """

    harm: float = 17.0
    step: float = 0.0014
    carriers: tuple[float, ...] = (0.2, 0.2, 0.2, 0.1, 0.1)
    outer_steps: int = 20


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
        boundary: differentiate the ball-constrained maximiser (``Response.ball``) instead of equation (3); not with
            ``starts``.
        solver, curvature, mixed, positive: see ``Response``.
        carriers: share of a mini-batch's images that carry δ in the outer loss; 1 in equation (1), 0.01 in the
            notebooks. Several shares divide the outer steps of all rounds into as many phases of one share each.
        starts: find a bank of maximisers a round, each on its own part of the image (``MultiStart``), instead of
            one; each carrier then bears one of them, drawn in proportion to its loss. ``ascent`` and
            ``ascent_labels`` go unused.
        sharp: what the outer steps do otherwise where the survey of ``starts`` found harm everywhere (``Sharp``).
        rounding: how the share becomes a number of images: ``down``, as in the notebooks, where a mini-batch too
            small for one carrier is an error; or ``up``, where every mini-batch has at least one.
        outer_optimizer, outer_lr: β and its method; the optimiser's state lasts over the rounds.
        schedule: of the outer rate over all rounds: ``constant``, or ``cosine`` down to zero.
        warmup: steps of β's method over which its rate rises evenly to its value. Adam's first steps move every
            parameter by the whole rate: unwarmed, they hide the backdoor from the gradient before they remove it.
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
    carriers: float | tuple[float, ...] = 1.0
    starts: MultiStart | None = None
    sharp: Sharp | None = None
    rounding: Literal["down", "up"] = "down"
    outer_optimizer: Literal["sgd", "adam"] = "sgd"
    outer_lr: float = 0.1
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 1
    outer_steps: int | None = None
    implicit_share: float | None = None
    guard: GuardSettings | None = None
    autocast: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not self.phases or not all(0 < share <= 1 for share in self.phases):
            raise ValueError(f"carriers: found {self.carriers}; expected a share in (0, 1], or several")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size: found {self.batch_size}; expected at least 1")
        if self.starts and self.delta_per != "round":
            raise ValueError(
                f"delta_per: found {self.delta_per!r} with starts; expected 'round': a bank is found once a round"
            )
        if self.starts and self.boundary:
            raise ValueError("boundary: found True with starts; expected False: a bank of δ has no one tangent space")

    def rate(self, progress: float, step: int = 10**9) -> float:
        """β after this share of all outer steps, in [0, 1), for the ``step``-th step of its method, from 0."""
        schedule = 0.5 + 0.5 * math.cos(math.pi * progress) if self.schedule == "cosine" else 1.0
        return self.outer_lr * schedule * min(1.0, (step + 1) / self.warmup)

    def to_come(self, progress: float) -> float:
        """Share of the sum of all outer rates, in [0, 1], after this share of all outer steps, in [0, 1]."""
        left = 1.0 - progress
        return left - math.sin(math.pi * progress) / math.pi if self.schedule == "cosine" else left

    @property
    def phases(self) -> tuple[float, ...]:
        """The share of carriers in each phase."""
        return self.carriers if isinstance(self.carriers, tuple) else (self.carriers,)

    def phase(self, progress: float) -> int:
        """Which phase the outer step after this share of all outer steps, in [0, 1), belongs to."""
        return int(progress * len(self.phases) + 1e-9)

    def carried(self, count: int, progress: float = 0.0) -> int:
        """How many of ``count`` images carry δ after this share of all outer steps."""
        exact = _exact(count * self.phases[self.phase(progress)])
        return math.ceil(exact) if self.rounding == "up" else int(exact)

    def check_images(self, count: int) -> None:
        """Raise ``ValueError`` if some mini-batch of ``count`` images, none of them held back, would carry no δ."""
        if count == 0:
            raise ValueError("images: found none; expected at least one clean image")
        size = min(self.batch_size or count, count)
        last = count % size or size
        smallest = min(self.phases)
        if min(self.carried(last, phase / len(self.phases)) for phase in range(len(self.phases))) == 0:
            raise ValueError(
                f"carriers: {smallest} of a mini-batch of {last} images is none, so delta would be added to no "
                f"image; expected a share of at least {_up(1 / last):g}, or a clean size ({count}) that is a multiple "
                f"of a batch size of at least {math.ceil(_exact(1 / smallest))}"
            )


def _exact(number: float) -> float:
    """``number`` without the error of a floating-point product: 0.29 of 100 is 29."""
    return round(number, 9)


def _up(share: float) -> float:
    """The next larger share in (0, 1] of three significant digits."""
    digits = 2 - math.floor(math.log10(share))
    return math.ceil(_exact(share * 10.0**digits)) / 10.0**digits


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
    batch_size=64,
    shuffle=True,
    delta_per="round",
    starts=MultiStart(),
    sharp=Sharp(),
    clip=True,
    response_images="carriers",
    solver=FirstTerm(),
    curvature="directional",
    mixed="directional",
    implicit=False,
    implicit_share=0.5,
    carriers=(0.15, 0.09, 0.046, 0.046, 0.046),
    rounding="up",
    outer_optimizer="adam",
    outer_lr=0.002,
    schedule="cosine",
    warmup=5,
    outer_steps=15,
    guard=GuardSettings(every=15, loss_rise=2.0, accuracy_drop=0.4, retries=4),
    autocast=True,
    channels_last=True,
)
"""Ours: see ``docs/engine.md``."""

DANSKIN = replace(REFERENCE, implicit=False)
"""``REFERENCE`` without the implicit term of equation (2): the direct gradient alone, as Danskin's theorem has it for
an exact maximiser. The ablation the paper leaves out."""

DANSKIN_GTSRB = replace(REFERENCE_GTSRB, implicit=False)
"""``REFERENCE_GTSRB`` likewise."""

RECIPES: dict[str, Recipe] = {
    "paper": PAPER,
    "reference": REFERENCE,
    "reference_gtsrb": REFERENCE_GTSRB,
    "danskin": DANSKIN,
    "danskin_gtsrb": DANSKIN_GTSRB,
    "fast": FAST,
}
