"""Registries are plain dictionaries; this adds the two checks they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from adapters.errors import unknown_name

Item = TypeVar("Item")


def add(registry: dict[str, Item], name: str, item: Item) -> Item:
    """Register ``item``; a second item of one name raises ``ValueError``."""
    if name in registry:
        raise ValueError(f"{name!r} is registered twice")
    registry[name] = item
    return item


def get(registry: Mapping[str, Item], key: str, name: str) -> Item:
    """The item called ``name``; ``UserError`` names ``key`` and lists the known names otherwise."""
    if name not in registry:
        raise unknown_name(key, name, registry)
    return registry[name]
