"""What Theorems 2 and 3 share: Lemma 2, equation (22), and its empirical risk.

    Pr[argmax_j θ(x + δ)_j ≠ y] ≤ R̂_γ(θ) + 2ℜ(Θ_γ|D) + 3√(ln(1/ξ)/(2n))

with probability at least 1 − ξ over n clean images, for every θ of the class, where ℜ is the Rademacher complexity of
the losses (x, y) ↦ ℓ_γ(−M(θ(x + δ), y)) on them, M(v, y) = v_y − max_{j≠y} v_j the margin and ℓ_γ the ramp of (17).

The paper's statements do not follow from its proofs at a few places, and one of them is false as printed. Both
theorems therefore come in two forms:

``printed``
    equations (5) and (6) to the letter.
``derived``
    what the same proof gives with its steps done in full; the default. Each theorem's docstring lists what changes.
    In Lemma 2: R̂_γ is the mean ramp loss of (19), at most the statement's share of margins up to γ; the complexity
    depends on the sample through ‖X‖, so the confidence term is the empirical version's, 3√(ln(2/ξ)/(2n)) (Mohri et
    al., *Foundations of Machine Learning*, Theorem 3.3). It holds for all ‖δ‖₂ ≤ C_δ at once, so also for a δ that
    was found on the same images.

Both speak of norm limits and a γ fixed before the images were seen. Put in what was measured on a trained model, as
the paper's comparison does, and the number is an indication; the price of the exact statement is a union over a grid
of limits, a term of order √(ln ln / n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Form = Literal["printed", "derived"]


@dataclass(frozen=True)
class GeneralizationBound:
    """The right-hand side of (5) or (6), term by term. Shares of images, but above 1 where the bound says nothing.

    Attributes:
        risk: R̂_γ(θ), on the clean images with δ.
        complexity: what is left of 2ℜ.
        remainder: 8/n, the end of Dudley's integral in (6); 0 in (5).
        confidence: the price of holding with probability 1 − ξ.
        form: ``printed`` or ``derived``.
    """

    risk: float
    complexity: float
    remainder: float
    confidence: float
    form: Form

    @property
    def gap(self) -> float:
        """How far the error on unseen images can exceed the risk on the clean ones: all terms but ``risk``."""
        return self.complexity + self.remainder + self.confidence

    @property
    def total(self) -> float:
        """The bound on Pr[argmax_j θ(x + δ)_j ≠ y]."""
        return self.risk + self.gap

    @property
    def informative(self) -> bool:
        """Whether it is under 1, which every probability is."""
        return self.total < 1


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """M(v, y) = v_y − max_{j≠y} v_j for each image.

    Args:
        logits: (n, k) float, k ≥ 2.
        labels: (n,) int64 in [0, k).

    Returns:
        (n,) float; positive where the label is the strict argmax.
    """
    column = labels.unsqueeze(1)
    others = logits.scatter(1, column, -math.inf)
    found: Tensor = logits.gather(1, column).squeeze(1) - others.max(dim=1).values
    return found


def margin_risk(logits: Tensor, labels: Tensor, margin: float, form: Form = "derived") -> float:
    """R̂_γ(θ) on images that carry δ, in [0, 1].

    ``printed``: the share with θ(x + δ)_y ≤ γ + max_{j≠y} θ(x + δ)_j (Section 5, whose "≤" after R̂_γ allows anything
    smaller). ``derived``: the mean ramp loss, equation (19): 1 − M/γ, clipped to [0, 1]. Neither is less than the
    share of errors, and both grow with γ.

    Raises:
        ValueError: γ ≤ 0 or no image.
    """
    if not margin > 0 or len(labels) == 0:
        raise ValueError(f"margin: found {margin:g} and {len(labels)} images; expected a margin > 0 and an image")
    found = margins(logits.double(), labels)
    if known(form) == "printed":
        return float((found <= margin).double().mean())
    return float((1 - found / margin).clamp(0, 1).mean())


def confidence_term(count: int, xi: float, form: Form = "derived") -> float:
    """3√(ln(1/ξ)/(2n)) as printed, with ln(2/ξ) as derived.

    Raises:
        ValueError: ξ outside (0, 1) or n < 1.
    """
    if not 0 < xi < 1:
        raise ValueError(f"xi: found {xi:g}; expected a probability in (0, 1)")
    if count < 1:
        raise ValueError(f"count: found {count}; expected at least one image")
    return 3 * math.sqrt(math.log((1 if known(form) == "printed" else 2) / xi) / (2 * count))


def known(form: Form) -> Form:
    """``form`` itself; raises ``ValueError`` for any other word."""
    if form not in get_args(Form):
        raise ValueError(f"form: found {form!r}; expected one of: {', '.join(get_args(Form))}")
    return form


def largest_norm(images: Tensor) -> float:
    """χ, the largest ‖x‖₂ of (n, ...) float images; Σ of squares in float64."""
    return float(images.double().flatten(1).norm(dim=1).max())


def frobenius(images: Tensor) -> float:
    """‖X‖₂ of the matrix whose n rows are the images, (n, ...) float."""
    return float(torch.linalg.vector_norm(images.double()))
