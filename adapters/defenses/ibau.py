"""I-BAU as a defense of the harness: settings in, ``ibau_defense.IBAU`` out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field
from torch import nn

from adapters.errors import UserError
from adapters.protocols import Defense, DefenseContext, DefenseResult, LabelledImages
from ibau_defense import BALLS, IBAU, RECIPES, SOLVERS, MultiStart, Recipe, RoundReport
from ibau_defense.solvers import FirstTerm

RecipeName = Literal["paper", "reference", "reference_gtsrb", "danskin", "danskin_gtsrb", "fast"]


_MANY = ("windows", "harmful", "sharp", "far")  # settings of the ascent from many starts
_LONE = ("ascent_steps", "ascent_lr", "ascent_optimizer")  # and of the ascent from one
_PRODUCTS = ("solver_steps", "damping", "curvature", "positive")  # of products with the curvature
_IMPLICIT = ("solver", *_PRODUCTS, "solver_step", "mixed", "boundary")

FAR_STARTS = 16
"""Starts of ``far: true`` on the entire image, and focused ones besides (``MultiStart.far``)."""
FAR_CARRIERS = (0.2, 0.2, 0.2, 0.1, 0.1)
"""Its share of carriers, a phase each: with fewer, the late steps bring such a backdoor back."""


class Ibau(Defense):
    """Implicit Backdoor Adversarial Unlearning (Zeng et al., ICLR 2022).

    A setting left at None is the recipe's own (``ibau_defense.recipes``). ``ball`` is the norm of the cell's
    ``radius``. ``ascent_steps`` is T, ``ascent_lr`` α, ``outer_lr`` β, ``carriers`` the share of a mini-batch's
    images that carry δ in the outer loss; ``solver_steps`` is the paper's ϑ and ``solver_step`` the step of the
    fixed-point, Neumann and first-term solvers. ``positive`` goes with Gauss–Newton products, positive semi-definite
    as they are: it solves with their sum instead of their difference (``ibau_defense.Response``). A setting that would
    change nothing is refused: those of one ascent with many starts, those of products with ``first_term``.

    What ``fast`` is made of can be switched off, for ablations: ``starts: false`` takes one ascent instead of many,
    ``windows: false`` has all starts climb on the whole image, ``harmful: 0`` takes every later bank, ``sharp: false``
    treats fragile networks as others, ``warmup: 1`` starts at the full rate.

    ``far: true`` is for a trigger that may lie all over the image in few training images, which ``fast`` else leaves:
    starts on the entire image up to the ball's edge are carried to the end, by more images (``FAR_CARRIERS``). It costs
    accuracy, with a backdoor or without.
    """

    name: ClassVar[str] = "ibau"
    uses: ClassVar[frozenset[str]] = frozenset({"clean_size", "radius"})
    bounds_memory: ClassVar[bool] = True

    recipe: RecipeName = "fast"
    rounds: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    ball: Literal["l2", "linf", "l1"] = "l2"
    ascent_steps: Annotated[int, Field(ge=1)] | None = None
    ascent_lr: Annotated[float, Field(gt=0)] | None = None
    ascent_optimizer: Literal["sgd", "adam", "normalised"] | None = None
    clip: bool | None = None
    penalty: Annotated[float, Field(ge=0)] | None = None
    implicit: bool | None = None
    boundary: bool | None = None
    solver: Literal["first_term", "fixed_point", "neumann", "conjugate_gradient", "minres", "normal_cg"] | None = None
    solver_steps: Annotated[int, Field(ge=1)] | None = None
    solver_step: Annotated[float, Field(gt=0)] | None = None
    damping: Annotated[float, Field(ge=0)] | None = None
    curvature: Literal["exact", "forward_over_reverse", "directional", "gauss_newton"] | None = None
    mixed: Literal["exact", "directional"] | None = None
    positive: bool | None = None
    carriers: Annotated[float, Field(gt=0, le=1)] | None = None
    outer_optimizer: Literal["sgd", "adam"] | None = None
    outer_lr: Annotated[float, Field(gt=0)] | None = None
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    starts: bool | None = None
    windows: bool | None = None
    harmful: Annotated[float, Field(ge=0)] | None = None
    sharp: bool | None = None
    far: bool | None = None
    warmup: Annotated[int, Field(ge=1)] | None = None

    @classmethod
    def of_recipe(cls, name: str) -> dict[str, Any]:
        """What each setting left at None is in the recipe ``name``, without those that do nothing there."""
        recipe = RECIPES[name]
        solver, starts = recipe.solver, recipe.starts
        values = {key: getattr(recipe, key) for key in cls.model_fields if hasattr(recipe, key)}
        values |= {"solver": solver.name, "solver_steps": solver.max_steps, "damping": solver.damping}
        values |= {"solver_step": getattr(solver, "step", None), "starts": starts is not None}
        ascent = recipe.ascent
        values |= {"ascent_lr": ascent.step_size, "ascent_optimizer": ascent.optimizer}
        values["ascent_steps"] = ascent.steps or "one a mini-batch"
        values["batch_size"] = recipe.batch_size or "all images"
        if starts:
            values |= {"windows": starts.windows, "harmful": starts.harmful, "far": starts.far > 0}
            values["sharp"] = recipe.sharp is not None
        idle = {key for keys, _ in cls(recipe=cast("RecipeName", name))._idle(recipe) for key in keys}
        return {key: value for key, value in values.items() if key not in idle and value is not None}

    def settings(self) -> Recipe:
        """The named recipe with every setting that was given."""
        recipe = RECIPES[self.recipe]
        ascent: dict[str, Any] = {
            "steps": self.ascent_steps,
            "step_size": self.ascent_lr,
            "optimizer": self.ascent_optimizer,
        }
        direct = (
            "rounds", "batch_size", "clip", "penalty", "implicit", "boundary", "curvature", "mixed", "positive",
            "carriers", "outer_optimizer", "outer_lr", "warmup",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in direct if getattr(self, name) is not None}
        ascent = {name: value for name, value in ascent.items() if value is not None}
        if recipe.starts:
            given["starts"] = self._starts(recipe.starts)
            if self.far and self.carriers is None:
                given["carriers"] = FAR_CARRIERS
        if self.sharp is False or self.starts is False:
            given["sharp"] = None
        elif self.carriers is not None and recipe.sharp:
            given["sharp"] = replace(recipe.sharp, carriers=(self.carriers,) * len(recipe.sharp.carriers))
        return replace(recipe, ascent=replace(recipe.ascent, **ascent), solver=self._solver(recipe), **given)

    def _starts(self, starts: MultiStart) -> MultiStart | None:
        if self.starts is False:
            return None
        harmful = starts.harmful if self.harmful is None else self.harmful
        far = FAR_STARTS if self.far else starts.far
        return replace(starts, harmful=harmful, windows=self.windows is not False, far=far)

    def check(self, key: str) -> None:
        recipe = RECIPES[self.recipe]
        if self.starts and not recipe.starts:
            raise UserError(
                f"{key}.starts: found true; expected false or none, the recipe {self.recipe} has one ascent"
            )
        if self.boundary and recipe.starts and self.starts is not False:
            raise UserError(
                f"{key}.boundary: found true; expected false or none, a bank of starts has no one tangent space "
                "(starts: false takes one ascent)"
            )
        kind = SOLVERS[self.solver] if self.solver else type(recipe.solver)
        if self.solver_step is not None and "step" not in kind.__dataclass_fields__:
            raise UserError(f"{key}.solver_step: found {self.solver_step}; expected none, {kind.name} has no step")
        settings = self.settings()
        for names, reason in self._idle(settings):
            for name in names:
                if getattr(self, name) is not None:
                    raise UserError(f"{key}.{name}: found {getattr(self, name)}; expected none, {reason}")
        if settings.positive and settings.curvature != "gauss_newton":
            raise UserError(
                f"{key}.positive: found true with curvature {settings.curvature}; expected gauss_newton, whose "
                "products alone are positive semi-definite"
            )

    def _idle(self, settings: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
        """Settings that would change nothing, and why."""
        products = settings.implicit and not isinstance(settings.solver, FirstTerm)
        if not settings.starts:
            yield _MANY, "the ascent has one start"
        else:
            yield _LONE, "the ascent from many starts has steps of its own (starts: false takes one ascent)"
            if not products or settings.curvature == "gauss_newton":
                yield ("penalty",), "neither the ascent from many starts nor the implicit term would have it"
            if settings.starts.far:
                yield ("harmful",), "with far: true there is no later bank"
        if not settings.implicit:
            reason = f"the recipe {self.recipe} has no implicit term to solve for (implicit: true gives it one)"
            yield _IMPLICIT, reason
        elif not products:
            yield _PRODUCTS, f"the solver {settings.solver.name} forms no product"

    def check_clean_size(self, count: int, key: str) -> None:
        recipe = self.settings()
        if recipe.guard is None:  # otherwise how many it holds back depends on the labels
            try:
                recipe.check_images(count)
            except ValueError as error:
                raise UserError(f"{key}.{error}") from None

    def _solver(self, recipe: Recipe) -> Any:
        given = {"max_steps": self.solver_steps, "step": self.solver_step, "damping": self.damping}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        kind = SOLVERS[self.solver] if self.solver else type(recipe.solver)
        if kind is type(recipe.solver):
            return replace(recipe.solver, **changes)
        return kind(**changes)

    def work(self, images: int, classes: int) -> float:
        recipe = self.settings()
        each = recipe.outer_steps * (recipe.batch_size or images) if recipe.outer_steps else images
        return float(recipe.rounds * each)

    def run(self, model: nn.Module, clean: LabelledImages, context: DefenseContext) -> DefenseResult:
        if context.radius is None:
            raise UserError("cell.radius: found none; expected a number of at least 0 for the defense ibau")

        def on_round(current: nn.Module, report: RoundReport) -> None:
            context.on_round(current, report.as_dict())

        bounds = [size for size in (self.micro_batch, context.micro_batch) if size is not None]
        outcome = IBAU(
            ball=BALLS[self.ball](context.radius),
            recipe=self.settings(),
            micro_batch=min(bounds, default=None),
            tally=context.passes,
            seed=context.seed,
        ).unlearn(model, clean.images, clean.labels, on_round=on_round, out_of_time=context.out_of_time)
        return DefenseResult(outcome.model, outcome.status, outcome.reason)
