"""A network trained on normalised inputs, as a network for pixels in [0, 1]: ``NAME?mean=R,G,B&std=R,G,B``."""

from __future__ import annotations

import math
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from adapters.errors import UserError

EXAMPLE = "NAME?mean=0.4914,0.4822,0.4465&std=0.247,0.243,0.261"


class Normalised(nn.Module):
    """``network((images - mean) / std)``; ``mean`` and ``std``: one number a channel, in units of pixels in [0, 1].

    They are no parameters and not in the state dict: a checkpoint of the bare network fits (``adapters.checkpoints``).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] to (N, num_classes) logits."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def split(name: str) -> tuple[str, dict[str, tuple[float, ...]]]:
    """The network's own name, and ``mean`` and ``std`` where ``name`` has them; else nothing.

    Raises ``UserError`` for anything else behind the question mark.
    """
    own, mark, query = name.partition("?")
    if not mark:
        return own, {}
    try:
        found = {key: tuple(map(float, value.split(","))) for key, value in parse_qsl(query, strict_parsing=True)}
    except ValueError:
        found = {}
    finite = all(math.isfinite(one) for values in found.values() for one in values)
    if found.keys() != {"mean", "std"} or not finite or min(found["std"]) <= 0:
        raise UserError(f"cell.model: found {name!r}; expected {EXAMPLE}: a number a channel, std above 0")
    if not 0 <= min(found["mean"]) <= max(found["mean"]) <= 1:  # of 256 levels, most likely
        raise UserError(f"cell.model: found {name!r}; expected mean and std of pixels in [0, 1], such as {EXAMPLE}")
    return own, found


def normalised(network: nn.Module, given: dict[str, tuple[float, ...]], channels: int) -> nn.Module:
    """``network``, behind ``mean`` and ``std`` of ``split`` if there are any; ``UserError`` unless they fit."""
    if not given:
        return network
    for key, values in given.items():
        if len(values) != channels:
            raise UserError(f"cell.model: {key} has {len(values)} numbers; expected {channels}, one a channel")
    return Normalised(network, given["mean"], given["std"])
