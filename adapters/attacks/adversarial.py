"""The adversarial step of clean-label poisoning (Turner et al., 2019): images are made hard before they are stamped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adapters.attacks.fitting import frozen
from adapters.attacks.label_maps import CleanLabel

EPS = 16 / 255
"""Bound of the perturbation, l_inf, pixels in [0, 1]: one of those Turner et al. use on CIFAR-10."""
STEPS = 100
_REACH = 1.5  # the steps together, in bounds

_BATCH = 128


@dataclass(frozen=True)
class AdversarialPerturbation:
    """Untargeted PGD away from an image's own label, on a clean model: what is left to learn it by is the trigger.

    The Adversarial Robustness Toolbox does the steps (``ProjectedGradientDescentPyTorch``): ``steps`` of
    1.5 ``eps`` / ``steps`` along the sign of the cross-entropy's gradient, from the image itself, so that nothing is
    drawn. Its ``PoisoningAttackCleanLabelBackdoor`` is the same with images it draws itself, with replacement and from
    numpy's global state: it cannot poison exactly ``round(ratio * N)`` images of our choice. Turner et al. perturb on
    networks trained to be robust; ours is the clean model that optimised triggers are fitted to, trained plainly.

    ``classifier``: gives the clean model, in evaluation mode, a module that is this call's own; only its gradients'
    switches are touched. ``digest``: which model that is. On another device, or in other batches, roundings differ and
    with them a few pixels.
    """

    classifier: Callable[[], nn.Module] = field(repr=False)
    digest: str
    num_classes: int
    device: torch.device
    eps: float = EPS
    steps: int = STEPS

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Perturbed copies, rounded to the 256 levels, no pixel further than ``eps`` and half a level from its own.

        ``images``: (N, C, H, W) uint8 on the CPU; ``labels``: (N,) int64, the classes they move away from.
        """
        if len(images) == 0:
            return images.clone()
        from art.attacks.evasion import ProjectedGradientDescentPyTorch  # takes seconds to import
        from art.estimators.classification import PyTorchClassifier

        model = self.classifier()
        # The toolkit's loader draws a seed from torch's global generator, though it shuffles nothing.
        with frozen(model), torch.random.fork_rng(devices=[]):
            estimator = PyTorchClassifier(
                model,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(images.shape[1:]),
                nb_classes=self.num_classes,
                clip_values=(0.0, 1.0),
                device_type="gpu" if self.device.type == "cuda" else "cpu",
            )
            pgd = ProjectedGradientDescentPyTorch(
                estimator,
                norm="inf",
                eps=self.eps,
                eps_step=min(self.eps, _REACH * self.eps / self.steps),
                max_iter=self.steps,
                batch_size=_BATCH,
                verbose=False,
            )
            found = pgd.generate(images.to(torch.float32).div_(255).numpy(), labels.numpy())
        return torch.from_numpy(found).mul(255).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class AdversarialCleanLabel(CleanLabel):
    """Clean labels, and the images that carry the trigger go through ``perturb`` first."""

    perturb: AdversarialPerturbation

    def prepare(self, images: Tensor, labels: Tensor) -> Tensor:
        """(N, C, H, W) uint8 and (N,) int64 to what the trigger is put on, (N, C, H, W) uint8."""
        return self.perturb(images, labels)
