"""What a trigger makes of a few images: whether it keeps to its contract, and how to tell it from another version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.errors import UserError
from adapters.protocols import Trigger
from ibau_defense.clean_set import TOLERANCE

PROBED = 8
"""Images that a trigger is tried on."""
PATCHES, SAME = 8, 1e-4
"""A side of the grid on which a trigger's mean change is noted, and how far two notes of one trigger may be apart:
machines round in ways of their own."""


def check_conduct(trigger: Trigger, images: Tensor, key: str = "cell.attack") -> None:
    """Try ``trigger`` on the first few of ``images``; whoever builds one does so, and nobody after.

    Args:
        images: (n, C, H, W) uint8, n at least 1.
        key: of the sweep file, for the error.

    Raises:
        UserError: the trigger returns something else, changes the images that it is given, or does not do the same to
            the same images twice: training and scoring would be of unlike triggers.
    """
    given = _probes(images)
    before = given.clone()

    def wrong(found: str, expected: str) -> UserError:
        return UserError(f"{key}: {_named(trigger)} {found}; expected {expected}")

    made = trigger(given)
    if not isinstance(made, Tensor) or made.dtype != torch.float32 or made.shape != given.shape:
        found = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise wrong(f"returned {found}", f"torch.float32 of shape {tuple(given.shape)}, as it was given")
    if not torch.equal(given, before):
        raise wrong("changed the images that it was given", "new ones, these as they were")
    check_range(made, trigger, key)
    if not torch.equal(trigger(given), made):
        raise wrong("did not do the same to the same images twice", "draws from its seed alone, made when it is built")


def check_range(images: Tensor, trigger: Trigger, key: str = "cell.attack") -> None:
    """Raise ``UserError`` where ``trigger`` returned NaN or pixels outside [0, 1], which 256 levels do not hold."""
    low, high = (float(end) for end in torch.aminmax(images)) if images.numel() else (0.0, 1.0)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN is refused
        raise UserError(
            f"{key}: {_named(trigger)} returned pixels from {low:g} to {high:g}; expected all of them in [0, 1]"
        )


def _probes(images: Tensor) -> Tensor:
    return images[:PROBED].cpu().float().div_(255)


def _named(trigger: Trigger) -> str:
    return f"the trigger {getattr(trigger, 'name', type(trigger).__name__)!r}"


def conduct_digest(trigger: Trigger, images: Tensor) -> str:
    """SHA-256 of what ``trigger`` makes of the first few of ``images``, (n, C, H, W) uint8, in 256 levels."""
    return hashlib.sha256(trigger(_probes(images)).mul(255).round().to(torch.uint8).numpy().tobytes()).hexdigest()


def mean_change(trigger: Trigger, images: Tensor) -> list[float]:
    """By how much ``trigger`` changes the first few of ``images`` on average, on a coarse grid, channel by channel."""
    given = _probes(images)
    change = trigger(given) - given
    return [round(each, 6) for each in F.adaptive_avg_pool2d(change.mean(dim=0), PATCHES).flatten().tolist()]


def same_change(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two notes of ``mean_change`` are of one trigger."""
    return len(one) == len(other) and all(abs(a - b) <= SAME for a, b in zip(one, other, strict=True))
