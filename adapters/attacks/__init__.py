"""Backdoor triggers, the labels they aim at, and poisoning through ART."""

from adapters.attacks.image_trigger import ImageTrigger, digest
from adapters.attacks.label_maps import AllToAll, AllToOne, label_map
from adapters.attacks.poisoning import PoisonedSet, poison, poison_count
from adapters.attacks.triggers import TRIGGERS, build, check

__all__ = [
    "TRIGGERS",
    "AllToAll",
    "AllToOne",
    "ImageTrigger",
    "PoisonedSet",
    "build",
    "check",
    "digest",
    "label_map",
    "poison",
    "poison_count",
]
