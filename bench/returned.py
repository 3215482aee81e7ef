"""What a defense returned, looked at before it is believed: a plug-in is not trusted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adapters.protocols import DefenseResult
from bench.scoring import evaluating

STATUSES = ("ok", "no_trigger_detected", "diverged", "timeout")
"""What a defense may say of itself; the others are the harness's to say."""


def checked(result: Any, name: str, images: Tensor, num_classes: int) -> DefenseResult:
    """``result`` if a model can be scored in it. One with NaN or infinite weights or logits has ``diverged``, whatever
    it says.

    Args:
        name: the defense's.
        images: (2, C, H, W) float, on the defense's device, for the model to try.

    Raises:
        TypeError: it is no ``DefenseResult``, or holds no model.
        ValueError: its status is none of ``STATUSES``, or the model does not give a logit for each class.
    """
    if not isinstance(result, DefenseResult):
        raise TypeError(f"defense {name!r} returned {type(result).__name__}; expected a DefenseResult")
    if not isinstance(result.model, nn.Module):
        raise TypeError(f"defense {name!r} returned a model of type {type(result.model).__name__}; expected a module")
    if result.status not in STATUSES:
        raise ValueError(f"defense {name!r} returned the status {result.status!r}; expected one of {STATUSES}")
    broken = _not_finite(result.model)
    if broken is not None:
        return result._replace(status="diverged", reason=f"NaN or infinite values in {broken!r} of what it returned")
    with evaluating(result.model):
        logits = result.model(images)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (len(images), num_classes):
        raise ValueError(f"the model of defense {name!r} gives {found}; expected {(len(images), num_classes)}")
    if not bool(torch.isfinite(logits).all()):
        return result._replace(status="diverged", reason="NaN or infinite logits of what it returned")
    return result


def _not_finite(model: nn.Module) -> str | None:
    """The first parameter or buffer that is not finite."""
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None
