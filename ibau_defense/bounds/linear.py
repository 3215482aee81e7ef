"""Theorem 2, equation (5): how adversarial unlearning of a linear classifier generalises.

    Pr[argmax_j (θ(x + δ))_j ≠ y] ≤ R̂_γ(θ) + 2 C_θ (χ + C_δ)/√n + 3√(ln(1/ξ)/(2n))

for ‖θ‖ ≤ C_θ, ‖x‖₂ ≤ χ and ‖δ‖₂ ≤ C_δ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ibau_defense.bounds.generalization import (
    Form,
    GeneralizationBound,
    confidence_term,
    known,
    largest_norm,
    margin_risk,
)  # fmt: skip


def linear_bound(
    *,
    risk: float,
    weight_norm: float,
    input_norm: float,
    radius: float,
    margin: float,
    count: int,
    classes: int = 2,
    xi: float = 0.05,
    form: Form = "derived",
) -> GeneralizationBound:
    """Equation (5), R̂_γ(θ) + 2 C_θ (χ + C_δ)/√n + 3√(ln(1/ξ)/(2n)), and its terms.

    **Statement against proof.** Appendix A.2.1 bounds the complexity of (x, y) ↦ ⟨θ, x + δ⟩, equation (23), and puts
    it in (22) where the complexity of the *loss* ℓ_γ ∘ (−M) ∘ θ belongs, so γ and the number of classes k are lost.
    As printed the theorem is false: θ/s and γ/s have the same R̂_γ and the same errors as θ and γ, and half the second
    term for s = 2, so it would vanish for free (``tests/test_generalization.py`` shows a linear classifier that breaks
    it). ``derived`` puts the composition back by contraction:

    * k = 2: the margin is ±⟨θ₁ − θ₀, x + δ⟩ and the ramp 1/γ-Lipschitz, hence 2 C_θ (χ + C_δ)/(γ√n) with
      C_θ ≥ ‖θ₁ − θ₀‖₂;
    * k > 2: (√2/γ)-Lipschitz in ‖·‖₂ of k outputs, and Maurer's vector contraction (2016, √2 times the sum of k
      complexities, which ‖θ‖_F bounds jointly), hence 4√k C_θ (χ + C_δ)/(γ√n) with C_θ ≥ ‖θ‖_F.

    The supremum over ‖δ‖ ≤ C_δ is part of both, as equation (26) has it. ``printed`` keeps (5).

    Args:
        risk: R̂_γ(θ), of ``margin_risk`` in the same form.
        weight_norm: C_θ; of ``weight_norm`` for a given model.
        input_norm: χ.
        radius: C_δ, in the ℓ2 norm and the units of the images.
        margin: γ > 0, in the units of a logit.
        count: n.
        classes: k ≥ 2.
        xi: ξ, the probability of being wrong.

    Raises:
        ValueError: a negative norm, k < 2, γ ≤ 0, n < 1 or ξ outside (0, 1).
    """
    for name, value in (("weight_norm", weight_norm), ("input_norm", input_norm), ("radius", radius)):
        if not value >= 0:
            raise ValueError(f"{name}: found {value:g}; expected a norm, at least 0")
    if not margin > 0:
        raise ValueError(f"margin: found {margin:g}; expected a margin > 0")
    if classes < 2:
        raise ValueError(f"classes: found {classes}; expected at least 2")
    confidence = confidence_term(count, xi, form)
    factor = 2.0 if form == "printed" else 2 / margin if classes == 2 else 4 * math.sqrt(classes) / margin
    complexity = factor * weight_norm * (input_norm + radius) / math.sqrt(count)
    return GeneralizationBound(risk, complexity, 0.0, confidence, form)


def weight_norm(weight: Tensor, bias: Tensor | None = None, form: Form = "derived") -> float:
    """C_θ of one classifier: ‖θ‖_F, or ‖θ₁ − θ₀‖₂ for two classes in the derived form.

    Args:
        weight: (k, d) float.
        bias: (k,) float, as the weight of an input that is always 1.
    """
    theta = (weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)).double()
    if known(form) == "derived" and len(theta) == 2:
        theta = theta[1:] - theta[:1]
    return float(theta.norm())


def linear_model_bound(
    weight: Tensor,
    bias: Tensor | None,
    images: Tensor,
    labels: Tensor,
    delta: Tensor,
    *,
    radius: float,
    margin: float,
    xi: float = 0.05,
    form: Form = "derived",
) -> GeneralizationBound:
    """(5) for x ↦ Wx + b at the norms measured on it and on its clean images.

    A bias is the weight of an input that is always 1 and that δ does not reach: χ² grows by 1.

    Args:
        weight, bias: (k, d) and (k,) float, or None.
        images: (n, ...) float with d numbers each; the clean set.
        labels: (n,) int64 in [0, k).
        delta: of one image's shape, ‖δ‖₂ ≤ ``radius``: where R̂_γ is taken.

    Raises:
        ValueError: ‖δ‖ > C_δ, or as in ``linear_bound``.
    """
    size = float(delta.double().norm())
    if size > radius * (1 + 1e-6):
        raise ValueError(f"delta: found norm {size:g}; expected at most radius, {radius:g}")
    logits = torch.nn.functional.linear((images + delta).flatten(1), weight, bias)
    return linear_bound(
        risk=margin_risk(logits, labels, margin, form),
        weight_norm=weight_norm(weight, bias, form),
        input_norm=math.hypot(largest_norm(images), 0.0 if bias is None else 1.0),
        radius=radius,
        margin=margin,
        count=len(labels),
        classes=len(weight),
        xi=xi,
        form=form,
    )
