"""The paper's theory measured: Theorem 1 and Appendix A.3.1, as records and as the plots of ``docs/engine.md``."""

from bench.theory.figures import FIGURES, draw
from bench.theory.measure import STUDIES

__all__ = ["FIGURES", "STUDIES", "draw"]
