"""A fitted trigger: tensors, and where they come from, in one small safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from adapters.attacks.fitting import Fit, FitContext, fooled, frozen
from adapters.attacks.image_trigger import ImageTrigger


class DamagedTriggerError(ValueError):
    """The bytes are not those of a fitted trigger as it was saved."""


@dataclass(eq=False)
class FittedTrigger(ImageTrigger):
    """clip(x * keep + pattern), found by optimisation on a clean model.

    ``provenance`` (JSON-able): settings, what was fitted with, what was reached.
    """

    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of what the trigger does: of its shapes and tensors."""
        total = hashlib.sha256()
        for tensor in (self.keep, self.pattern):
            total.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()

    def dumps(self) -> bytes:
        """The content of a safetensors file: ``keep``, ``pattern``, and name, digest and provenance in its header."""
        tensors = {"keep": self.keep.detach().cpu().contiguous(), "pattern": self.pattern.detach().cpu().contiguous()}
        about = {"name": self.name, "digest": self.digest, "provenance": json.dumps(self.provenance, sort_keys=True)}
        return save(tensors, metadata=about)

    @classmethod
    def loads(cls, content: bytes) -> FittedTrigger:
        """The inverse of ``dumps``; raises ``DamagedTriggerError`` for anything else."""
        try:
            tensors = load(content)
            about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            trigger = cls(tensors["keep"], tensors["pattern"], about["name"], json.loads(about["provenance"]))
            digest = about["digest"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DamagedTriggerError(f"no fitted trigger ({type(error).__name__}: {error})") from error
        if trigger.digest != digest:
            raise DamagedTriggerError(f"its tensors have SHA-256 {trigger.digest[:12]}…; it says {digest[:12]}…")
        return trigger

    def save(self, path: Path) -> None:
        Path(path).write_bytes(self.dumps())

    @classmethod
    def load(cls, path: Path) -> FittedTrigger:
        """Raises ``DamagedTriggerError`` for a file that is no fitted trigger, ``FileNotFoundError`` for none."""
        return cls.loads(Path(path).read_bytes())


def run_fit(fit: Fit, context: FitContext, provenance: Mapping[str, Any]) -> FittedTrigger:
    """Fit, with the model frozen, and note the share of images that fool the clean model with and without it."""
    with frozen(context.model):
        found = fit(context)
        keep, pattern = (one.to(context.images) for one in (found.keep, found.pattern))
        report = {
            **found.report,
            "fooled": fooled(context, keep, pattern),
            "fooled_without": fooled(context, keep.new_ones(1), pattern.new_zeros(1)),
        }
    keep, pattern = found.keep.detach().cpu(), found.pattern.detach().cpu()
    if not bool(pattern.isfinite().all()):
        raise ValueError(f"the fit of {fit.name} gave values that are not finite")
    return FittedTrigger(keep, pattern, fit.name, {**provenance, "report": report})
