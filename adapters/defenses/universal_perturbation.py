"""Universal adversarial perturbations (Moosavi-Dezfooli et al., CVPR 2017), their per-image step from foolbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ibau_defense import L2Ball

EVALUATION_BATCH = 128


class Perturbation(NamedTuple):
    """``delta``: (1, C, H, W), ‖delta‖₂ within the ball; ``fooling_rate``: share of images whose label it changes."""

    delta: Tensor
    fooling_rate: float


@dataclass(frozen=True)
class UniversalPerturbation:
    """Algorithm 1 of the paper: image after image, the smallest addition that takes it over the boundary too.

    ``images_per_step``: 1 is the paper's; more images share the mean of their additions, in one step. Stops when the
    fooling rate has reached ``fooling_rate``, or after ``passes`` passes.
    """

    passes: int
    fooling_rate: float
    deepfool_steps: int
    candidates: int
    overshoot: float
    images_per_step: int

    def find(
        self,
        model: nn.Module,
        images: Tensor,
        ball: L2Ball,
        generator: torch.Generator,
        out_of_time: Callable[[], bool],
    ) -> Perturbation:
        """``model``: frozen, in evaluation mode; ``images``: (n, C, H, W) float32 in [0, 1]."""
        clean = _labels(model, images)
        delta = torch.zeros_like(images[:1])
        rate = 0.0
        for _ in range(self.passes):
            for index in torch.randperm(len(images), generator=generator).split(self.images_per_step):
                index = index.to(images.device)
                moved = (images[index] + delta).clamp(0, 1)
                held = _labels(model, moved) == clean[index]
                if bool(held.any()):
                    addition = deepfool(
                        model, moved[held], clean[index][held], self.deepfool_steps, self.candidates, self.overshoot
                    )
                    delta = ball.project(delta + addition.mean(dim=0, keepdim=True))
                if out_of_time():
                    break
            rate = float((_labels(model, (images + delta).clamp(0, 1)) != clean).float().mean())
            if rate >= self.fooling_rate or out_of_time():
                break
        return Perturbation(delta, rate)


def deepfool(
    model: nn.Module, images: Tensor, labels: Tensor, steps: int = 50, candidates: int = 10, overshoot: float = 0.02
) -> Tensor:
    """(n, C, H, W): foolbox' ℓ2 DeepFool minus the images themselves.

    ``labels``: (n,) the labels the model gives now.
    """
    import foolbox

    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    attack = foolbox.attacks.L2DeepFoolAttack(steps=steps, candidates=candidates, overshoot=overshoot)
    fooled: Tensor = attack.run(bounded, images.contiguous(), labels)
    return (fooled - images).detach()


def _labels(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part).argmax(dim=1) for part in images.split(EVALUATION_BATCH)])
