"""A second opinion on a defended model: its accuracy under foolbox' projected gradient descent in ℓ2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.intervals import wilson
from bench.scoring import Estimate
from bench.training import seeded

IMAGES, STEPS, BATCH = 500, 20, 64
"""Scoring images attacked, at most; steps of the attack, each of 2.5 · radius / STEPS; images at once."""


def evasion_accuracy(model: nn.Module, images: Tensor, labels: Tensor, radius: float, seed: int) -> Estimate:
    """The share of images whose label survives every perturbation of ℓ2 norm at most ``radius`` that the attack finds.

    An image that is misclassified as it is counts as lost. The interval is Wilson's.

    Args:
        images: (N, C, H, W), uint8 in [0, 255]; ``IMAGES`` of them are drawn by ``seed``.
        labels: (N,) int64.
        radius: in pixels in [0, 1], at least 0.
    """
    import foolbox

    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES].to(images.device)
    bounded = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=images.device)
    attack = foolbox.attacks.L2PGD(rel_stepsize=2.5 / STEPS, steps=STEPS)
    lost = 0
    with seeded(seed, images.device):  # foolbox draws its starts from the global generator
        for part in chosen.split(BATCH):
            batch = images[part].float().div_(255)
            lost += int(attack(bounded, batch, labels[part], epsilons=radius)[2].sum())
    accuracy = 1 - lost / len(chosen)
    return Estimate(accuracy, wilson(accuracy, len(chosen)))
