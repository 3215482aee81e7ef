"""``ScoreStore``: what models made of the test images, image by image, so that no cell scores what another has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import victim_files as files
from bench.scoring import Flags, Outcomes, Scorer, Scores, packed, unpacked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptOutcomes:
    """The outcomes of all N images of a test set, as far as they are known: where ``scored``, (N,), is True."""

    scored: Flags
    outcomes: Outcomes

    @classmethod
    def none(cls, scorer: Scorer) -> KeptOutcomes:
        """Nothing is known of the test set of ``scorer``."""
        triggered = np.zeros((len(scorer.attacks), scorer.test_size), dtype=np.bool_)
        unknown = np.zeros(scorer.test_size, dtype=np.bool_)
        return cls(unknown, Outcomes(unknown, triggered, triggered, triggered))

    def lacking(self, scorer: Scorer) -> Tensor:
        """(n,) int64: which of the images of ``scorer`` have no outcome here."""
        return torch.from_numpy(~self.scored[scorer.index.numpy()]).nonzero().squeeze(1)

    def completed(self, scorer: Scorer, model: nn.Module) -> KeptOutcomes:
        """With the outcomes of every image of ``scorer``: ``model`` is scored on those that are lacking."""
        part = scorer.part(self.lacking(scorer))
        fresh, index = part.outcomes(model), part.index.numpy()
        scored = self.scored.copy()
        scored[index] = True
        merged = {}
        for name in ("correct", "counted", "hit", "restored"):
            merged[name] = getattr(self.outcomes, name).copy()
            merged[name][..., index] = getattr(fresh, name)
        return KeptOutcomes(scored, Outcomes(**merged))

    def pack(self) -> dict[str, Any]:
        """JSON-able: one bit an outcome."""
        return {**self.outcomes.pack(), "scored": packed(self.scored)}

    @classmethod
    def unpack(cls, tree: Mapping[str, Any], scorer: Scorer) -> KeptOutcomes:
        """The inverse of ``pack``; raises ``ValueError``, ``KeyError`` or ``TypeError`` for anything else."""
        outcomes, expected = Outcomes.unpack(tree), (len(scorer.attacks), scorer.test_size)
        if outcomes.counted.shape != expected:
            raise ValueError(f"found outcomes of shape {outcomes.counted.shape}; expected {expected}")
        return cls(unpacked(tree["scored"], scorer.test_size), outcomes)


class ScoreStore:
    """Outcomes of models as files in ``folder``, shared by every process and machine that sees it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def scores(self, name: str, sha256: str, model: nn.Module, scorer: Scorer) -> Scores:
        """The scores of ``model`` by ``scorer``; it is scored on those images alone on which nobody has yet.

        Args:
            name: of the file that they are kept in.
            sha256: of the model's own file: outcomes of another build of it do not count.
        """
        path = self._folder / f"{name}.scores.json"
        kept = _kept(_entries(path, sha256), path, scorer)
        if len(kept.lacking(scorer)):
            try:
                kept = self._complete(path, sha256, model, scorer)
            except OSError as error:  # a cache that is full, or may only be read
                logger.warning("scores of victim %s are not kept: %s", name, error)
                kept = kept.completed(scorer, model)
        return Scores.of(kept.outcomes.at(scorer.index), scorer.names)

    @staticmethod
    def _complete(path: Path, sha256: str, model: nn.Module, scorer: Scorer) -> KeptOutcomes:
        with files.locked(path.with_suffix(".lock"), f"scores of victim {path.name.partition('.')[0]}"):
            entries = _entries(path, sha256)  # by now another process may have written some
            kept = _kept(entries, path, scorer)
            if len(kept.lacking(scorer)):
                kept = kept.completed(scorer, model)
                entries = {**entries, scorer.identity: kept.pack()}
                files.write_sealed(path, {"sha256": sha256, "outcomes": entries})
            return kept


def _kept(entries: Mapping[str, Any], path: Path, scorer: Scorer) -> KeptOutcomes:
    """Those of ``entries``, which stand at ``path``."""
    entry = entries.get(scorer.identity)
    try:
        return KeptOutcomes.none(scorer) if entry is None else KeptOutcomes.unpack(entry, scorer)
    except (ValueError, KeyError, TypeError) as damage:
        logger.warning("scores in %s are computed again: %s", path.name, damage)
        return KeptOutcomes.none(scorer)


def _entries(path: Path, sha256: str) -> dict[str, Any]:
    """What is kept at ``path``, by the identities of scorers; nothing if it is absent, damaged, or of another model."""
    try:
        tree = files.read_sealed(path)
    except FileNotFoundError:
        return {}
    except files.DamagedVictimError as damage:
        logger.warning("scores in %s are computed again: %s", path.name, damage)
        return {}
    entries = tree.get("outcomes")
    return entries if tree.get("sha256") == sha256 and isinstance(entries, dict) else {}
