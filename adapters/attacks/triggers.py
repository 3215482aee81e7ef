"""The registry of triggers, and how a sweep file's words become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adapters import registry
from adapters.attacks.badnets import BadNets
from adapters.attacks.blend import Blend
from adapters.attacks.fitting import Fit
from adapters.attacks.image_trigger import check_image_trigger, load_image_trigger
from adapters.attacks.invisible import L0Invisible, L2Invisible
from adapters.attacks.sinusoid import sinusoid
from adapters.attacks.smooth import Smooth
from adapters.attacks.trojan import TrojanSquare, TrojanWatermark
from adapters.attacks.wanet import WaNet
from adapters.protocols import Trigger

TriggerFactory = Callable[[tuple[int, int, int], int], Trigger]
"""(image_shape as (C, H, W), seed) to a trigger. What a trigger draws, it draws from the seed."""

TRIGGERS: dict[str, TriggerFactory] = {
    "badnets": BadNets.for_images,
    "blend": Blend.for_images,
    "sig": sinusoid,
    "wanet": WaNet.for_images,
}
"""The triggers that need nothing but the images' shape; ``adapters.registry.add`` takes in another."""

_FITS: tuple[Fit, ...] = (L0Invisible(), L2Invisible(), Smooth(), TrojanSquare(), TrojanWatermark())
FITS: dict[str, Fit] = {one.name: one for one in _FITS}
"""The triggers that are optimised on a clean model first (``adapters.attacks.fitted.run_fit``)."""


def needs_fit(spec: str | Mapping[str, Any]) -> bool:
    """Whether the trigger called ``spec`` is optimised on a clean model."""
    return isinstance(spec, str) and spec in FITS


def build(
    spec: str | Mapping[str, Any], image_shape: tuple[int, int, int], seed: int, key: str = "cell.attack"
) -> Trigger:
    """The trigger called ``spec``, or read from the files of the mapping ``{image, mode, mask, alpha}``.

    Raises ``UserError`` naming ``key``; ``ValueError`` for one that ``needs_fit``.
    """
    if needs_fit(spec):
        raise ValueError(f"expected a trigger that needs no clean model, found {spec!r}")
    if isinstance(spec, str):
        return registry.get(TRIGGERS, key, spec)(image_shape, seed)
    return load_image_trigger(spec, image_shape, key)


def check(spec: str | Mapping[str, Any], key: str = "cell.attack") -> None:
    """Raise ``UserError`` for a name nobody knows or files nobody can read. Needs no data set."""
    if isinstance(spec, str):
        registry.get({**TRIGGERS, **FITS}, key, spec)
    else:
        check_image_trigger(spec, key)
