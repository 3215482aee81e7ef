"""The registry of triggers, and how a sweep file's words become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from adapters import registry
from adapters.attacks import settings
from adapters.attacks.badnets import BadNets
from adapters.attacks.blend import Blend
from adapters.attacks.fitting import Fit
from adapters.attacks.image_trigger import check_image_trigger, load_image_trigger
from adapters.attacks.invisible import L0Invisible, L2Invisible
from adapters.attacks.sinusoid import sinusoid
from adapters.attacks.smooth import Smooth
from adapters.attacks.trojan import TrojanSquare, TrojanWatermark
from adapters.attacks.wanet import WaNet
from adapters.errors import UserError
from adapters.protocols import Trigger
from adapters.trigger_names import has_name, named

Spec = str | Mapping[str, Any]
"""What a sweep file says of a trigger: its name, ``{name: NAME, SETTING: VALUE, …}``, or an image's mapping."""


TriggerFactory = Callable[..., Trigger]
"""(image_shape as (C, H, W), seed) to a trigger. What a trigger draws, it draws from the seed.

Its keyword-only parameters are the trigger's settings, each with a default, and its range in its annotation. It raises
``UserError``, naming the setting, for one that does not go with the shape.
"""

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


def normal(spec: Spec, key: str = "cell.attack") -> str | dict[str, Any]:
    """``spec`` with the settings of a trigger checked, those at their defaults left out: all of them, its name alone.

    What gives the same trigger is then equal. An image's mapping, and a name alone, are as they were. Raises
    ``UserError`` naming ``key`` for a name nobody knows, a setting it does not have, a value out of range.
    """
    if isinstance(spec, str):
        return spec
    if not has_name(spec):
        return dict(spec)
    given = dict(spec)
    name = given.pop("name")
    if not isinstance(name, str):
        raise UserError(f"{key}.name: found {name!r}; expected one of: {', '.join(sorted({**TRIGGERS, **FITS}))}")
    changed = settings.checked(name, _settings(name, f"{key}.name"), given, key)
    return {"name": name, **changed} if changed else name


def name_of(spec: Spec) -> str:
    """What the trigger of a normal ``spec`` with a name is called: ``blend``, ``blend (alpha 0.1)``."""
    name, changed = _parts(spec)
    return named(name, changed)


def needs_fit(spec: Spec) -> bool:
    """Whether the trigger of ``spec`` is optimised on a clean model."""
    return (isinstance(spec, str) or has_name(spec)) and _parts(spec)[0] in FITS


def fit_of(spec: Spec) -> Fit:
    """The optimised trigger of a normal ``spec``, with its settings."""
    name, changed = _parts(spec)
    fit: Any = FITS[name]
    chosen: Fit = dataclasses.replace(fit, **changed) if changed else fit
    return chosen


def build(spec: Spec, image_shape: tuple[int, int, int], seed: int, key: str = "cell.attack") -> Trigger:
    """The trigger called ``spec``, with settings or without, or read from the files of ``{image, mode, mask, alpha}``.

    Its name tells the settings that are not the defaults. Raises ``UserError`` naming ``key``; ``ValueError`` for one
    that ``needs_fit``.
    """
    spec = normal(spec, key)
    if needs_fit(spec):
        raise ValueError(f"expected a trigger that needs no clean model, found {spec!r}")
    if not isinstance(spec, str) and not has_name(spec):
        return load_image_trigger(spec, image_shape, key)
    name, changed = _parts(spec)
    factory = registry.get(TRIGGERS, key, name)
    try:
        trigger = factory(image_shape, seed, **changed)
    except UserError as error:  # a setting that images of this shape cannot have
        raise UserError(f"{key}.{error}") from None
    if changed:
        trigger.name = named(name, changed)
    return trigger


def check(spec: Spec, key: str = "cell.attack") -> None:
    """Raise ``UserError`` for a name or a setting nobody knows, or files nobody can read. Needs no data set."""
    spec = normal(spec, key)
    if isinstance(spec, str):
        registry.get({**TRIGGERS, **FITS}, key, spec)
    elif not has_name(spec):
        check_image_trigger(spec, key)


def _parts(spec: Spec) -> tuple[str, dict[str, Any]]:
    """Name and settings."""
    if isinstance(spec, str):
        return spec, {}
    return str(spec["name"]), {key: value for key, value in spec.items() if key != "name"}


def _settings(name: str, key: str) -> dict[str, settings.Setting]:
    if name in FITS:
        return settings.of_fit(FITS[name])
    registry.get({**TRIGGERS, **FITS}, key, name)
    return settings.of_factory(TRIGGERS[name])
