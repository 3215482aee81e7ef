"""TABOR (Guo, Wang, Xing, Du, Song, 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapters.defenses.inversion import Network
from adapters.defenses.masked_triggers import MaskedTriggers
from adapters.defenses.neural_cleanse import MaskSearch, synthesis
from adapters.defenses.trigger_synthesis import Synthesis
from adapters.protocols import DefenseContext, LabelledImages

JUDGED = 256
"""Clean images a class's trigger is judged on, at most."""


class Tabor(MaskSearch):
    """Neural Cleanse's search with four regularisers against false alarms, and a score of their spirit.

    Overly large triggers (R1): elastic net of the mask and of the pattern outside it. Scattered triggers (R2): squared
    differences of neighbouring pixels, of the same two. Blocking triggers (R3): an image whose masked part is blacked
    out keeps its label. Overlaying triggers (R4): the trigger alone, on black, is of the class. R1 and R2 keep the
    ratios of 1e-6, 1e-5, 1e-7 and 1e-8, the weights of the paper's re-implementations; their common factor follows
    ``CostSchedule``.
    """

    name: ClassVar[str] = "tabor"

    outside: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the pattern's elastic net outside the mask, in units of the mask's."""
    scatter: Annotated[float, Field(ge=0)] = 0.1
    scatter_outside: Annotated[float, Field(ge=0)] = 0.01
    blocking: Annotated[float, Field(ge=0)] = 0.01
    """Weight of R3; 0 saves its passes, which are a quarter of each mini-batch."""
    overlaying: Annotated[float, Field(ge=0)] = 0.01

    def synthesise(
        self, model: nn.Module, clean: LabelledImages, context: DefenseContext, generator: torch.Generator
    ) -> Synthesis:
        network = Network.of(model, self.precision, context.device)
        objective = Regularisers(self.outside, self.scatter, self.scatter_outside, self.blocking, self.overlaying)
        found = self.search().run(network, clean, objective, context, generator)
        judged = LabelledImages(clean.images[:JUDGED], clean.labels[:JUDGED])
        attack, crop = judge(network, found.triggers, judged)
        scores = score(found.triggers, attack, crop)
        made = synthesis(found, scores)
        return made._replace(figures={**made.figures, "attack_accuracies": attack, "crop_accuracies": crop})


@dataclass(frozen=True)
class Regularisers:
    """TABOR's terms; weights as ``Tabor``'s fields."""

    outside: float
    scatter: float
    scatter_outside: float
    blocking: float
    overlaying: float

    def size(self, triggers: MaskedTriggers) -> Tensor:
        """(k,): R1 and R2."""
        rest = (1 - triggers.masks) * triggers.patterns
        large = elastic_net(triggers.masks) + self.outside * elastic_net(rest)
        return large + self.scatter * roughness(triggers.masks) + self.scatter_outside * roughness(rest)

    def extra(self, network: Network, triggers: MaskedTriggers, batch: LabelledImages, classes: Tensor) -> Tensor:
        """(k,): R3, on a quarter of the mini-batch, and R4."""
        total = torch.zeros(len(classes), device=classes.device)
        if self.blocking > 0:
            count = -(-len(batch.labels) // 4)
            cropped = cut_out(triggers, batch.images[:count])
            labels = batch.labels[:count].repeat(len(classes))
            losses = F.cross_entropy(network.logits(cropped), labels, reduction="none")
            total = total + self.blocking * losses.view(len(classes), count).mean(dim=1)
        if self.overlaying > 0:
            alone = network.logits(triggers.masks * triggers.patterns)
            total = total + self.overlaying * F.cross_entropy(alone, classes, reduction="none")
        return total


def elastic_net(images: Tensor) -> Tensor:
    """(k, C, H, W) to (k,): ‖·‖₁ + ‖·‖₂²."""
    return images.abs().sum(dim=(1, 2, 3)) + images.square().sum(dim=(1, 2, 3))


def roughness(images: Tensor) -> Tensor:
    """(k, C, H, W) to (k,): squared differences of horizontal and of vertical neighbours, summed."""
    down, across = images.diff(dim=2), images.diff(dim=3)
    return down.square().sum(dim=(1, 2, 3)) + across.square().sum(dim=(1, 2, 3))


def cut_out(triggers: MaskedTriggers, images: Tensor) -> Tensor:
    """x(1 - m) for each of k triggers and n images: (k n, C, H, W), the images running faster."""
    product = images[None] * (1 - triggers.masks[:, None])
    return product.flatten(0, 1)


def score(triggers: MaskedTriggers, attack: Tensor, crop: Tensor) -> Tensor:
    """(K,): log(‖M‖₁/d²) + log(s(M)/(d(d - 1))) - log(acc_att/2) - log(acc_crop/2); low is suspicious.

    The paper's metric without its last term, the accuracy under an explanation technique, and on the mask as it
    is where the paper rounds it to zeros and ones. ``attack``: (K,) share of images sent to the class; ``crop``: (K,)
    share that keep their label with the trigger's place blacked out. s is ``roughness``.
    """
    height, width = triggers.masks.shape[2:]
    area, edges = height * width, height * (width - 1)
    sparse = (triggers.norms() / area).clamp_min(1e-6).log()
    smooth = (roughness(triggers.masks) / edges).clamp_min(1e-6).log()
    return sparse + smooth - (attack.clamp_min(1e-3) / 2).log() - (crop.clamp_min(1e-3) / 2).log()


def judge(network: Network, triggers: MaskedTriggers, clean: LabelledImages) -> tuple[Tensor, Tensor]:
    """(K,) attack accuracies, on images of other classes, and (K,) crop accuracies, on all."""
    attack, crop = [], []
    with torch.no_grad():
        for row in range(len(triggers.masks)):
            one = MaskedTriggers(triggers.masks[row : row + 1], triggers.patterns[row : row + 1])
            rows = torch.zeros(len(clean.labels), dtype=torch.int64, device=clean.labels.device)
            other = clean.labels != row
            hits = _labels(network, one.stamp(clean.images, rows)) == row
            attack.append((hits & other).sum() / other.sum().clamp_min(1))
            crop.append((_labels(network, cut_out(one, clean.images)) == clean.labels).float().mean())
    return torch.stack(attack), torch.stack(crop)


def _labels(network: Network, images: Tensor) -> Tensor:
    return torch.cat([network.logits(part).argmax(dim=1) for part in images.split(network.limit)])
