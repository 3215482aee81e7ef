"""The paper's theory measured: Theorems 1 to 3 and Appendix A.3.1, as records and as plots of the documents."""

from bench.theory.figures import FIGURES, draw
from bench.theory.measure import STUDIES

__all__ = ["FIGURES", "STUDIES", "draw"]
