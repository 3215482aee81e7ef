"""Theorem 3, equation (6): how adversarial unlearning of a network generalises.

    Pr[argmax_j (θ(x + δ))_j ≠ y] ≤ R̂_γ(θ) + 8/n
        + 48 ln(n) (‖X‖₂ + √n) √ln(2W(W + n)) / (γn) · Π s_i ϱ_i · (Σ (a_i/s_i)^{2/3})^{3/2} + 3√(ln(1/ξ)/(2n))

with ‖A_i‖_σ ≤ s_i, ‖A_i‖_{2,1} ≤ a_i for i ≥ 2, a_1 = a_0(1 + m_1 √n C_δ) for ‖A_1‖_{2,1} ≤ a_0 and m_1 outputs of
the first layer, ϱ_i the Lipschitz constant of what follows A_i, W the largest dimension, X the n × d images as rows.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ibau_defense.bounds.chain import Layer, layers
from ibau_defense.bounds.generalization import (
    Form,
    GeneralizationBound,
    confidence_term,
    frobenius,
    margin_risk,
)  # fmt: skip
from ibau_defense.bounds.operators import SpectralNorm, WithBias, spectral_norm, two_one_norm


@dataclass(frozen=True)
class LayerNorms:
    """The constants of one layer.

    Attributes:
        name: of the convolution or linear layer in the model.
        spectral: s_i = ‖A_i‖_σ.
        two_one: ‖A_i‖_{2,1}; a_i, of the first layer a_0.
        lipschitz: ϱ_i.
        inputs, outputs: dimensions of A_i as a matrix.
    """

    name: str
    spectral: float
    two_one: float
    lipschitz: float
    inputs: int
    outputs: int


@dataclass(frozen=True)
class NetworkNorms:
    """The constants of Theorem 3 that do not depend on the images.

    Attributes:
        layers: from the input to the logits.
        constant: whether the layers act on (x, 1), because the model has biases.
        converged: whether every power iteration did; where not, a norm, and so the bound, may be too small.
    """

    layers: tuple[LayerNorms, ...]
    constant: bool = False
    converged: bool = True

    @property
    def width(self) -> int:
        """W, the largest dimension of a layer; a feature map counts with all its numbers, as the proof needs it.

        The W of the paper's Table 7 is the largest number of *channels*, another thing.
        """
        return max(max(one.inputs, one.outputs) for one in self.layers)

    @property
    def lipschitz(self) -> float:
        """Π s_i ϱ_i, which bounds the network's Lipschitz constant."""
        return math.prod(one.spectral * one.lipschitz for one in self.layers)

    def spread(self, first: float = 1.0) -> float:
        """Π s_i ϱ_i · (Σ (a_i/s_i)^{2/3})^{3/2}, with a_1 = ``first`` · a_0; 0 if two layers are 0."""
        slopes = math.prod(one.lipschitz for one in self.layers)
        terms = []
        for i, one in enumerate(self.layers):
            others = math.prod(other.spectral for j, other in enumerate(self.layers) if j != i)
            terms.append((one.two_one * (first if i == 0 else 1.0) * others) ** (2 / 3))
        return slopes * math.pow(sum(terms), 1.5)


def network_norms(
    model: nn.Module, image_shape: tuple[int, int, int], *, tolerance: float = 1e-3, max_steps: int = 500
) -> NetworkNorms:
    """The norms of ``model`` in evaluation mode, each convolution as the operator it is on images of that size.

    Args:
        model: a chain (``ibau_defense.bounds.chain.layers``): the simplified VGG, or an ``nn.Sequential`` of the
            supported layers. Left as it is; the work is done on the CPU in float64.
        image_shape: (C, H, W).
        tolerance, max_steps: of the power iteration, ``spectral_norm``.

    Raises:
        ValueError: the model is no such chain, as ResNet, GoogLeNet and DenseNet are not; Theorem 3 does not cover
            them.
    """
    chain = layers(model, image_shape)
    norms = [spectral_norm(layer.operator, tolerance=tolerance, max_steps=max_steps) for layer in chain]
    return NetworkNorms(
        layers=tuple(map(_norms, chain, norms)),
        constant=isinstance(chain[0].operator, WithBias),
        converged=all(one.status == "converged" for one in norms),
    )


def _norms(layer: Layer, spectral: SpectralNorm) -> LayerNorms:
    operator = layer.operator
    return LayerNorms(
        name=layer.name,
        spectral=spectral.value,
        two_one=two_one_norm(operator),
        lipschitz=layer.lipschitz,
        inputs=operator.inputs,
        outputs=operator.outputs,
    )


def network_bound(
    norms: NetworkNorms,
    *,
    risk: float,
    input_norm: float,
    radius: float,
    margin: float,
    count: int,
    xi: float = 0.05,
    form: Form = "derived",
) -> GeneralizationBound:
    """Equation (6) and its terms: R̂_γ(θ) + 8/n + 48 ln(n) (‖X‖₂ + √n) √ln(2W(W + n)) / (γn) ·
    Π s_i ϱ_i · (Σ (a_i/s_i)^{2/3})^{3/2} + 3√(ln(1/ξ)/(2n)), with the letters of the module's docstring.

    **Statement against proof.** ``printed`` is (6) with a_1 = a_0(1 + m_1 √n C_δ). Where C_δ > 0 its third term does
    not fall with n: a_1 grows with √n, ‖X‖ with √n and the denominator with n only, so that ln n is left and the bound
    grows, against the sentence after it. ``derived`` differs in five places:

    * (39): Σ_j ‖δ‖‖A_{:j}‖ is ‖δ‖‖A‖_{2,1}, without the factor m_1.
    * (29): all rows of Δ are δᵀ, so one extra column is enough where the paper takes n: [X, c1] and [A_1; δᵀA_1/c].
      With the best c > 0 the first layer's cover has (‖X‖ + √n C_δ)² a_0² for (‖X‖ + √n)² a_1², and ln(2(d + 1)m_1) for
      ln(2(d + n)m_1). No √n is left in a_1, and the bound falls with n as ln(n)/√n.
    * (46)–(47): the input of the later layers is σ(A_1(x + δ)), of norm up to ϱ_1 s_1(‖X‖ + √n C_δ). The paper has
      ‖X‖ + √n there with s_1 the norm of A_1 alone, which is too little for C_δ > 1.
    * (45) drops the ⌈·⌉ of (42) and (43): ⌈z⌉ ≤ 2z where the cover is not a single point, so √2 in the bound.
    * Lemma 2's risk and confidence, as in ``ibau_defense.bounds.generalization``.

    All the rest, from (48) to (53), is the paper's: α = 1/√n in Dudley's integral, the ramp 2/γ-Lipschitz.

    Args:
        norms: of ``network_norms``.
        risk: R̂_γ(θ), of ``margin_risk`` in the same form.
        input_norm: ‖X‖₂, the root of the sum of all squared pixels of the n images (p = 2, as in the proof).
        radius: C_δ, in the ℓ2 norm.
        margin: γ > 0, in the units of a logit.
        count: n ≥ 2.
        xi: ξ.

    Raises:
        ValueError: a negative norm, γ ≤ 0, n < 2 or ξ outside (0, 1).
    """
    for name, value in (("input_norm", input_norm), ("radius", radius)):
        if not value >= 0:
            raise ValueError(f"{name}: found {value:g}; expected a norm, at least 0")
    if not margin > 0:
        raise ValueError(f"margin: found {margin:g}; expected a margin > 0")
    if count < 2:
        raise ValueError(f"count: found {count}; expected at least two images")
    size = math.hypot(input_norm, math.sqrt(count)) if norms.constant else input_norm
    confidence = confidence_term(count, xi, form)
    W, root = norms.width, math.sqrt(count)
    if form == "printed":
        first = 1 + norms.layers[0].outputs * root * radius
        covered = (size + root) * math.sqrt(math.log(2 * W * (W + count))) * norms.spread(first)
    else:
        covered = math.sqrt(2) * (size + root * radius) * math.sqrt(math.log(2 * W * (W + 1))) * norms.spread()
    complexity = 48 * math.log(count) * covered / (margin * count)
    return GeneralizationBound(risk, complexity, 8 / count, confidence, form)


def network_model_bound(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    radius: float,
    margin: float,
    triggered: Tensor | None = None,
    xi: float = 0.05,
    form: Form = "derived",
    norms: NetworkNorms | None = None,
) -> GeneralizationBound:
    """(6) for one model, at the norms measured on it: what a report sets beside the measured error gap.

    Args:
        model: as for ``network_norms``.
        images: (n, C, H, W) float in [0, 1], the clean set.
        labels: (n,) int64.
        radius: C_δ.
        triggered: (n, C, H, W) float, the images with δ on them: where R̂_γ is taken. The images themselves (δ = 0)
            by default. A trigger that is not one additive δ is outside the theorem.
        norms: of this model, where they are known already.

    Raises:
        ValueError: the model is no chain, or as in ``network_bound``.
    """
    channels, height, width = images.shape[1:]
    norms = network_norms(model, (channels, height, width)) if norms is None else norms
    logits = _logits(model, images if triggered is None else triggered)
    return network_bound(
        norms,
        risk=margin_risk(logits, labels.cpu(), margin, form),
        input_norm=frobenius(images),
        radius=radius,
        margin=margin,
        count=len(labels),
        xi=xi,
        form=form,
    )


def _logits(model: nn.Module, images: Tensor, at_once: int = 256) -> Tensor:
    """(n, k) float64 on the CPU, of a copy in evaluation mode."""
    copied = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        return torch.cat([copied(part.cpu().double()) for part in images.split(at_once)])
