"""Imports of torchvision and timm, late (they cost seconds) and with one clear sentence when they cannot work."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from adapters.errors import UserError

# What a torchvision built for another torch raises: a missing operator (RuntimeError), a missing symbol (ImportError,
# OSError) and, on a second try in the same process, a half-initialised module (AttributeError).
_MISMATCH = (ImportError, RuntimeError, OSError, AttributeError)


def check_torchvision() -> None:
    """Raise ``UserError`` in one sentence when the installed torchvision is absent or does not fit torch."""
    import_torchvision("torchvision")


def import_torchvision(module: str = "torchvision.datasets") -> ModuleType:
    """Import torchvision or a submodule of it; ``UserError`` says what to install where that fails."""
    try:
        importlib.import_module("torchvision")
        return importlib.import_module(module)
    except _MISMATCH as error:
        raise UserError(_torchvision_sentence(error)) from error


def import_timm(module: str = "timm") -> ModuleType:
    """Import timm or a submodule of it, which imports torchvision; ``UserError`` says what to install."""
    check_torchvision()
    try:
        importlib.import_module("timm")
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"timm: cannot be imported ({error}); install it with 'pip install timm'") from error


def _torchvision_sentence(error: Exception) -> str:
    torch_version, vision_version = _version("torch"), _version("torchvision")
    if vision_version == "none":
        return "torchvision: not installed; install the one made for your torch with 'pip install torchvision'"
    return (
        f"torchvision: the installed torchvision {vision_version} does not match torch {torch_version} ({error}); "
        f"torchvision {vision_version} was made for {_required_torch()}: install a pair released together, "
        "'pip install --force-reinstall torch torchvision' with one --index-url for both"
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _required_torch() -> str:
    """The torch that the installed torchvision's own metadata asks for."""
    for requirement in importlib.metadata.requires("torchvision") or ():
        if requirement.split(";")[0].strip().startswith("torch") and "torchvision" not in requirement:
            return requirement.split(";")[0].replace("(", "").replace(")", "").strip()
    return "another torch"
