"""The gap studies: how far the error under δ on unseen images differs from that on the clean set, beside the bound.

The gap is the paper's (A.2.3): the absolute difference of the two errors. The bound is on how far the one can lie above
the risk that stands for the other (``GeneralizationBound.gap``); what it says, it says of every δ in the ball.
"""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bench.theory.linear_models import Setting, error, two_clouds, unlearned
from ibau_defense import L2Ball
from ibau_defense.bounds import linear_bound, margin_risk, network_model_bound, network_norms
from ibau_defense.bounds.generalization import Form, GeneralizationBound

Row = dict[str, Any]

FORMS: tuple[Form, ...] = get_args(Form)
SEEDS = range(5)
CLOUDS = (100, 316, 1000, 3162, 10_000, 31_623)
DIGITS = (50, 100, 200, 400, 800)
CLEAN = (25, 50, 100, 200, 400)
WIDTHS = (16, 32, 64, 128, 256)
FEW, NARROW = 200, 64
"""n where W varies, and W where n does."""
VICTIM_IMAGES, RADIUS, MARGIN = 797, 0.6, 1.0


def linear_gap() -> list[Row]:
    """Theorem 2: linear models unlearned within limits fixed beforehand, on two Gaussian clouds and on digits."""
    cases = [*(("two clouds", count) for count in CLOUDS), *(("digits", count) for count in DIGITS)]
    return [linear_row(source, count, seed) for seed in SEEDS for source, count in cases]


def network_gap_clean() -> list[Row]:
    """Theorem 3 over n, Table 8: a backdoored network of one hidden layer, unlearned by (1)."""
    return [network_row(NARROW, count, seed) for seed in SEEDS for count in CLEAN]


def network_gap_width() -> list[Row]:
    """Theorem 3 over W, Table 7: the same at hidden layers of several widths."""
    return [network_row(width, FEW, seed) for seed in SEEDS for width in WIDTHS]


def linear_row(source: str, count: int, seed: int) -> Row:
    """One linear model on ``count`` clean images, χ and the limits fixed beforehand."""
    if source == "digits":
        images, labels = _digits(seed)
        clean, fresh = (images[:count], labels[:count]), (images[max(DIGITS) :], labels[max(DIGITS) :])
        classes, chi, setting = 10, 8.0, Setting(limit=10.0, radius=0.5, margin=1.0)
    else:
        clean, fresh = two_clouds(count, seed), two_clouds(50_000, 1000 + seed)
        classes, chi, setting = 2, 1.0, Setting(limit=4.0, radius=0.1, margin=1.0)
    theta, delta = unlearned(*clean, classes, setting)
    bounds = {}
    for form in FORMS:
        risk = margin_risk((clean[0] + delta) @ theta.T, clean[1], setting.margin, form)
        # Gradient steps from zero keep θ₀ = −θ₁: the limit on ‖θ₁ − θ₀‖ is one on ‖θ‖_F too, as printed (5) has.
        norm = setting.limit / math.sqrt(2) if classes == 2 and form == "printed" else setting.limit
        bounds[form] = linear_bound(
            risk=risk, weight_norm=norm, input_norm=chi, radius=setting.radius, margin=setting.margin,
            count=count, classes=classes, form=form,
        )  # fmt: skip
    errors = error(theta, delta, *clean), error(theta, delta, *fresh)
    return {"source": source, "seed": seed, "count": count} | _row(*errors, bounds)


def network_row(width: int, count: int, seed: int) -> Row:
    """One backdoored network unlearned on ``count`` clean images; errors under its own trigger.

    Raises ``ValueError`` where a power iteration did not converge: a norm from below gives no bound from above.
    """
    images, labels = _digits(seed)
    images = images.float().unflatten(1, (1, 8, 8))
    model, trigger = victim(width, seed)
    start, end = VICTIM_IMAGES, VICTIM_IMAGES + max(CLEAN)
    clean, clean_labels = images[start : start + count], labels[start : start + count]
    cleaned = minimax(model, clean, clean_labels)
    norms = network_norms(cleaned, (1, 8, 8))
    if not norms.converged:
        raise ValueError(f"norms: found a power iteration cut short (width {width}); expected all to converge")
    kept: dict[str, Any] = {"radius": RADIUS, "margin": MARGIN, "triggered": clean + trigger, "norms": norms}
    bounds = {form: network_model_bound(cleaned, clean, clean_labels, form=form, **kept) for form in FORMS}
    errors = [_error(cleaned, x + trigger, y) for x, y in ((clean, clean_labels), (images[end:], labels[end:]))]
    before = _error(model, images[end:] + trigger, labels[end:])
    return {"width": width, "count": count, "seed": seed, "victim_error": before} | _row(errors[0], errors[1], bounds)


@cache
def victim(width: int, seed: int) -> tuple[nn.Module, Tensor]:
    """A network 64 – W – 10 with ELU, trained on digits of which a fifth carry δ and the label 0; and δ (1, 8, 8).

    δ, a grey 2 × 2 square of norm 0.6 added without clipping, is one vector for all images, as the theorem wants it.
    """
    images, labels = _digits(seed)
    images, labels = images[:VICTIM_IMAGES].float().unflatten(1, (1, 8, 8)), labels[:VICTIM_IMAGES].clone()
    trigger = torch.zeros(1, 8, 8)
    trigger[:, 6:, 6:] = RADIUS / 2
    images[: VICTIM_IMAGES // 5] += trigger
    labels[: VICTIM_IMAGES // 5] = 0
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ELU(), nn.Linear(width, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        for _ in range(200):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval(), trigger


def minimax(model: nn.Module, images: Tensor, labels: Tensor, steps: int = 120) -> nn.Module:
    """A copy unlearned by (1) itself: every image carries δ; two ascent steps on the ball, then one of θ, in turn.

    No recipe of ``IBAU``: those put δ on few images and clip, and the theorems speak of x + δ for all.
    """
    copied, ball = copy.deepcopy(model), L2Ball(RADIUS)
    delta = torch.zeros_like(images[0])
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.02, momentum=0.9)
    for _ in range(steps):
        for _ in range(2):
            delta.requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(copied(images + delta), labels)
            (uphill,) = torch.autograd.grad(loss, delta)
            delta = ball.project(delta.detach() + 0.5 * RADIUS * uphill / uphill.norm().clamp(min=1e-12))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(copied(images + delta), labels).backward()
        optimizer.step()
    return copied.eval()


@cache
def _digits(seed: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits in an order of the seed's: (n, 64) float64 in [0, 1], so ‖x‖₂ ≤ 8; (n,) int64."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(raw.data)[order] / 16, torch.from_numpy(raw.target).to(torch.int64)[order]


def _error(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(dim=1) != labels).double().mean())


def _row(clean: float, fresh: float, bounds: dict[Form, GeneralizationBound]) -> Row:
    """``gap``: |fresh − clean|; of the bound, derived, its terms and ``bound`` on the gap; ``printed``: the other's."""
    derived = bounds["derived"]
    return {
        "clean_error": clean,
        "fresh_error": fresh,
        "gap": abs(fresh - clean),
        "risk": derived.risk,
        "complexity": derived.complexity,
        "confidence": derived.confidence,
        "bound": derived.gap,
        "printed": bounds["printed"].gap,
    }
