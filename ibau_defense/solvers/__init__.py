"""Linear solvers for the implicit-gradient system; they know nothing of images."""

from ibau_defense.solvers.base import Matvec, Solution, Solver, Status
from ibau_defense.solvers.conjugate_gradient import ConjugateGradient
from ibau_defense.solvers.dense import Dense
from ibau_defense.solvers.first_term import FirstTerm
from ibau_defense.solvers.fixed_point import FixedPoint
from ibau_defense.solvers.minres import Minres
from ibau_defense.solvers.neumann import Neumann
from ibau_defense.solvers.normal_cg import NormalCG

SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver for solver in (FirstTerm, FixedPoint, Neumann, ConjugateGradient, Minres, NormalCG, Dense)
}

__all__ = [
    "SOLVERS", "ConjugateGradient", "Dense", "FirstTerm", "FixedPoint", "Matvec", "Minres", "Neumann", "NormalCG",
    "Solution", "Solver", "Status",
]  # fmt: skip
