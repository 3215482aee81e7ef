"""GroupNorm in BatchNorm's place: what mixes the images of a batch has no gradient of a single one."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

GROUPS, CHANNELS = 32, 4
"""At most so many groups, of at least so many channels: groups of one channel lose how bright a channel is."""


def replace_batch_norm(model: nn.Module) -> nn.Module:
    """Put a ``GroupNorm`` where ``model`` has a BatchNorm, in place.

    As many equal groups as ``GROUPS`` and ``CHANNELS`` allow; opacus' own replacement has 32 groups whatever the width,
    which for the paper's network is a group for each channel of the first block.
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
    groups = math.gcd(GROUPS, channels)
    while groups > 1 and channels < CHANNELS * groups:
        groups //= 2
    group = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine)
    rest = [getattr(norm, part) for part in ("drop", "act") if isinstance(getattr(norm, part, None), nn.Module)]
    return nn.Sequential(group, *rest) if rest else group
