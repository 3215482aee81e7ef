"""GroupNorm in BatchNorm's place: what mixes the images of a batch has no gradient of a single one."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

GROUPS = 32


def replace_batch_norm(model: nn.Module) -> nn.Module:
    """Put a ``GroupNorm`` of 32 groups, or as many as divide the channels, where ``model`` has a BatchNorm; in place.

    timm's BatchNorm with an activation inside becomes a sequence of the norm and that activation. Scale and shift
    start at 1 and 0.
    """
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return _group_norm(model)
    for name, child in model.named_children():
        setattr(model, name, replace_batch_norm(child))
    return model


def _group_norm(norm: Any) -> nn.Module:
    channels = norm.num_features
    group = nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps=norm.eps, affine=norm.affine)
    rest = [getattr(norm, part) for part in ("drop", "act") if isinstance(getattr(norm, part, None), nn.Module)]
    return nn.Sequential(group, *rest) if rest else group
