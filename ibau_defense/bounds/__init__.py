"""The paper's theory as numbers: Theorem 1 (hypergradient), Theorem 2 (linear models), Theorem 3 (networks)."""

from ibau_defense.bounds.generalization import Form, GeneralizationBound, confidence_term, margin_risk, margins
from ibau_defense.bounds.hypergradient import HypergradientBound, HypergradientConstants, hypergradient_constants
from ibau_defense.bounds.linear import linear_bound, linear_model_bound, weight_norm
from ibau_defense.bounds.network import (
    LayerNorms,
    NetworkNorms,
    network_bound,
    network_model_bound,
    network_norms,
)  # fmt: skip
from ibau_defense.bounds.operators import SpectralNorm, spectral_norm, two_one_norm

__all__ = [
    "Form",
    "GeneralizationBound",
    "HypergradientBound",
    "HypergradientConstants",
    "LayerNorms",
    "NetworkNorms",
    "SpectralNorm",
    "confidence_term",
    "hypergradient_constants",
    "linear_bound",
    "linear_model_bound",
    "margin_risk",
    "margins",
    "network_bound",
    "network_model_bound",
    "network_norms",
    "spectral_norm",
    "two_one_norm",
    "weight_norm",
]
