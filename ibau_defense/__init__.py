"""Implicit Backdoor Adversarial Unlearning (Zeng et al., ICLR 2022) as a small library; needs torch alone."""

from ibau_defense.ascent import Ascent, AscentResult, ascend
from ibau_defense.balls import BALLS, Ball, L1Ball, L2Ball, LinfBall
from ibau_defense.curvature import Linearisation, linearise
from ibau_defense.diagnostics import RoundReport
from ibau_defense.implicit import ImplicitArgmax, Response, implicit_argmax, response_product
from ibau_defense.objective import FunctionObjective, Network, Objective, UniversalLoss, value_and_gradients
from ibau_defense.recipes import RECIPES, Recipe
from ibau_defense.solvers import SOLVERS, Solution, Solver
from ibau_defense.starts import MultiStart, ascend_from_many
from ibau_defense.unlearning import IBAU, Unlearned

__all__ = [
    "BALLS",
    "IBAU",
    "RECIPES",
    "SOLVERS",
    "Ascent",
    "AscentResult",
    "Ball",
    "FunctionObjective",
    "ImplicitArgmax",
    "L1Ball",
    "L2Ball",
    "Linearisation",
    "LinfBall",
    "MultiStart",
    "Network",
    "Objective",
    "Recipe",
    "Response",
    "RoundReport",
    "Solution",
    "Solver",
    "UniversalLoss",
    "Unlearned",
    "ascend",
    "ascend_from_many",
    "implicit_argmax",
    "linearise",
    "response_product",
    "value_and_gradients",
]  # fmt: skip
