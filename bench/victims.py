"""Poisoned models: trained once, cached by content, verified on every read; or taken from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapters import attacks, checkpoints, models
from adapters.attacks import AdversarialPerturbation
from adapters.errors import UserError
from adapters.protocols import ImageTensors, LabelMap, Trigger
from bench import victim_files as files
from bench.cells import NOT_OF_THE_VICTIM, SCHEMA_VERSION, Cell, Target, content_hash
from bench.kept_scores import ScoreStore
from bench.provenance import device_name
from bench.scoring import Scorer, Scores, fingerprint
from bench.seeds import derive_seed
from bench.training import seeded, train
from bench.triggers import Attack, TriggerStore, attack_hash, cell_attacks, clean_cell

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Victim:
    """A poisoned model in evaluation mode on its device.

    ``meta`` (JSON-able): how it came about; ``meta["training"]["seconds"]`` is what it cost, absent for a checkpoint.
    """

    id: str
    model: nn.Module = field(repr=False)
    meta: dict[str, Any] = field(repr=False)

    @property
    def seconds(self) -> float | None:
        """Of its training; None for one that was not trained here."""
        training = self.meta.get("training")
        return None if training is None else float(training["seconds"])

    @property
    def scored_as(self) -> str:
        """Under which name its scores are kept: its id, but that a checkpoint is one model in every repetition."""
        return str(self.meta.get("scored_as", self.id))


class VictimStore:
    """The victims under ``cache_dir/victims``, shared by every process and machine that sees the folder.

    A cell without an attack is a clean model; optimised triggers are fitted to one (``bench.triggers``), and so is the
    perturbation of ``clean_label: adversarial``.
    """

    def __init__(self, cache_dir: Path) -> None:
        self.folder = Path(cache_dir) / "victims"
        self._scores = ScoreStore(self.folder)
        self._triggers = TriggerStore(cache_dir, self.get_or_train)
        self.attacking = self._triggers.fitting
        """Runs while a trigger is fitted to a clean model, and while a victim's training images are poisoned."""

    def has(self, cell: Cell) -> bool:
        """Whether the victim of ``cell`` needs no training (its files are not verified here)."""
        return cell.victim is not None or (
            self._file(cell, "safetensors").exists() and self._file(cell, "json").exists()
        )

    def clean_model_to_train(self, cell: Cell, image_shape: tuple[int, int, int]) -> Cell | None:
        """The clean model that the attack of ``cell`` still needs, as a cell, if nobody has trained it."""
        clean = clean_cell(cell, image_shape)
        needed = cell.clean_label == "adversarial" or self._triggers.lacks(cell, clean)
        return clean if needed and not self.has(clean) else None

    def attacks(self, cell: Cell, data: ImageTensors, device: torch.device) -> tuple[Attack, ...]:
        """The triggers of ``cell`` and where they lead; fits those that nobody has fitted yet."""

        def fit(spec: attacks.Spec, target: Target, mapping: LabelMap) -> Trigger:
            return self._triggers.get_or_fit(spec, target, mapping, cell, data, device)

        return () if cell.is_clean else cell_attacks(cell, data, fit, self._perturbation(cell, data, device))

    def _perturbation(self, cell: Cell, data: ImageTensors, device: torch.device) -> AdversarialPerturbation | None:
        """That of ``clean_label: adversarial``; the model is taken from the cache when it is needed, and not held."""
        if cell.clean_label != "adversarial":
            return None
        clean = clean_cell(cell, data.image_shape)
        digest = self.get_or_train(clean, data, device).meta["sha256"]
        return AdversarialPerturbation(
            lambda: self.get_or_train(clean, data, device).model, str(digest), data.num_classes, device
        )

    def epochs(self, cell: Cell) -> tuple[int, int] | None:
        """(epochs done, epochs) of the victim of ``cell`` while a process trains it; None before the first is done."""
        return files.epochs(self._file(cell, "lock"))

    def get_or_train(self, cell: Cell, data: ImageTensors, device: torch.device) -> Victim:
        """The victim of ``cell``: from its checkpoint, from the cache, or trained now, by one process only.

        A damaged or foreign file is noticed, logged and rebuilt.

        Raises:
            UserError: checkpoint, attack, target or poison ratio do not fit the data set or the model.
            TrainingDiverged: the loss became infinite or NaN.
        """
        if cell.victim is not None:
            return self._from_checkpoint(cell, data, device)
        used = self.attacks(cell, data, device)
        try:
            return self._read(cell, data, device, used)
        except (files.DamagedVictimError, FileNotFoundError):
            pass  # another process may be at work: judged again below, alone
        with files.locked(self._file(cell, "lock"), f"victim {cell.victim_id}") as holder:
            try:
                return self._read(cell, data, device, used)
            except files.DamagedVictimError as damage:
                logger.warning("victim %s is rebuilt: %s", cell.victim_id, damage)
            except FileNotFoundError:
                logger.info("victim %s is trained", cell.victim_id)
            return self._train(cell, data, device, used, holder.progress)

    def scores(self, victim: Victim, scorer: Scorer) -> Scores:
        """The victim's own scores: on each test image it is scored once, and that is kept beside it."""
        return self._scores.scores(victim.scored_as, victim.meta["sha256"], victim.model, scorer)

    def _file(self, cell: Cell, suffix: str) -> Path:
        return self.folder / f"{cell.victim_id}.{suffix}"

    def _from_checkpoint(self, cell: Cell, data: ImageTensors, device: torch.device) -> Victim:
        assert cell.victim is not None
        path = Path(cell.victim.checkpoint)
        model = new_model(cell, data)
        checkpoints.load_into(model, path)
        sha256 = attacks.digest([path], "cell.victim.checkpoint")
        if cell.victim.digest and sha256 != cell.victim.digest:
            raise UserError(
                f"cell.victim.checkpoint: {path} has SHA-256 {sha256[:12]}…, and had {cell.victim.digest[:12]}… when"
                " the sweep was planned; expected a file that stays as it is"
            )
        scored_as = content_hash({"scores_of": sha256, "model": cell.model})
        meta = {"checkpoint": str(path), "sha256": sha256, "scored_as": scored_as}
        return Victim(cell.victim_id, _ready(model, device), meta)

    def _read(self, cell: Cell, data: ImageTensors, device: torch.device, used: tuple[Attack, ...]) -> Victim:
        """From the cache; raises ``DamagedVictimError`` or ``FileNotFoundError``."""
        meta = files.read_sealed(self._file(cell, "json"))
        if meta.get("id") != cell.victim_id or meta.get("schema") != SCHEMA_VERSION:
            raise files.DamagedVictimError("its metadata belong to another victim or version")
        if meta.get("data") != fingerprint(data.train):
            raise files.DamagedVictimError(f"the images of {data.name!r} are not those it was trained on")
        if not isinstance(meta.get("training"), dict) or "seconds" not in meta["training"]:
            raise files.DamagedVictimError("its metadata lack the training report")
        if meta.get("fitted", {}) != _fitted(used):
            raise files.DamagedVictimError("its optimised triggers are not those that are at hand, or its clean model")
        change = _change(data, used)
        noted = meta.get("trigger_change", change)  # of some victims it was not noted yet
        if len(noted) != len(change) or not all(map(attacks.same_change, noted, change)):
            raise files.DamagedVictimError("its triggers do not change images as they did when it was trained")
        state = files.read_state(self._file(cell, "safetensors"), meta.get("sha256"))
        model = new_model(cell, data)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise files.DamagedVictimError(f"its tensors do not fit {cell.model!r}: {error}") from error
        return Victim(cell.victim_id, _ready(model, device), meta)

    def _train(
        self,
        cell: Cell,
        data: ImageTensors,
        device: torch.device,
        used: tuple[Attack, ...],
        on_epoch: Callable[[int, int], None],
    ) -> Victim:
        if cell.training is None:
            raise ValueError("expected a cell with training settings")
        # A clean model is not poisoned, and may be trained within a poisoning, to perturb on: blocks must not nest.
        with self.attacking if used else nullcontext():
            poisoned = poisoned_training_set(cell, data, used)
        model = new_model(cell, data)
        seed = derive_seed("order", cell.dataset, cell.model, cell.seed)
        report = train(model, poisoned.images, poisoned.labels, cell.training, device, seed, on_epoch, poisoned.rows)
        # Tensors first: without the metadata that follow, they count as absent.
        sha256 = files.write_state(self._file(cell, "safetensors"), model.state_dict())
        meta = {
            "schema": SCHEMA_VERSION,
            "id": cell.victim_id,
            "cell": cell.model_dump(mode="json", exclude=NOT_OF_THE_VICTIM),
            "data": fingerprint(data.train),
            "poisoned": len(poisoned.indices),
            "fitted": _fitted(used),
            "trigger_change": _change(data, used),
            "training": report._asdict(),
            "device": device_name(device),
            "versions": {name: version(name) for name in ("torch", "timm", "adversarial-robustness-toolbox")},
            "sha256": sha256,
        }
        files.write_sealed(self._file(cell, "json"), meta)
        return Victim(cell.victim_id, model, meta)


def poisoned_training_set(cell: Cell, data: ImageTensors, used: Sequence[Attack]) -> attacks.PoisonedSet:
    """What the victim of ``cell`` is trained on; the same on every call with the cell's triggers, ``used``.

    Without any it is the clean training set.
    """
    if not used:
        none = torch.empty(0, dtype=torch.int64)
        return attacks.PoisonedSet(*data.train, none, none, torch.arange(len(data.train.labels)))
    if cell.poison_ratio is None:
        raise ValueError("expected a cell with a poison ratio: a victim from a checkpoint brings no training data")
    seed = derive_seed("poison", cell.dataset, attack_hash(cell), cell.seed)
    poison = attacks.poison_copies if cell.mix == "united" else attacks.poison
    return poison(data.train, used, cell.poison_ratio, seed)


def _fitted(used: tuple[Attack, ...]) -> dict[str, str]:
    """The digests of the optimised triggers: a victim trained on one does not answer to another.

    And that of the clean model that images were perturbed on: a defense that trains anew gets the same ones.
    """
    digests = {one.name: one.digest for one, _ in used if isinstance(one, attacks.FittedTrigger)}
    perturbed = [one.perturb.digest for _, one in used if isinstance(one, attacks.AdversarialCleanLabel)]
    return {**digests, "clean_model": perturbed[0]} if perturbed else digests


def _change(data: ImageTensors, used: tuple[Attack, ...]) -> list[list[float]]:
    """What each trigger does to a few test images: with other code it does something else."""
    return [attacks.mean_change(trigger, data.test.images) for trigger, _ in used]


def new_model(cell: Cell, data: ImageTensors) -> nn.Module:
    """Initial weights derive from data set, model and repetition: cells that differ in the attack start alike."""
    with seeded(derive_seed("init", cell.dataset, cell.model, cell.seed), torch.device("cpu")):
        return models.build(cell.model, data.num_classes, data.image_shape)


def _ready(model: nn.Module, device: torch.device) -> nn.Module:
    return model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]
