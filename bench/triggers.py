"""The triggers of a cell: built at once, or fitted to a clean model once and cached by content."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapters import attacks
from adapters.errors import UserError
from adapters.protocols import ImageTensors, LabelMap, Trigger
from bench import victim_files as files
from bench.cells import Cell, Target, Training, TriggerSpec, content_hash, plain
from bench.clock import Stopwatch
from bench.files import write_atomically
from bench.provenance import device_name
from bench.scoring import fingerprint
from bench.seeds import derive_seed
from bench.training import default_training

if TYPE_CHECKING:
    from bench.victims import Victim

logger = logging.getLogger(__name__)

Attack = tuple[Trigger, LabelMap]
Fitter = Callable[[attacks.Spec, Target, LabelMap], Trigger]
"""(name or name with settings, target, label map) of an optimised trigger to the trigger."""

FIT_VERSION = 1
"""Part of a fitted trigger's id: raise it when the same settings give another trigger."""
FIT_IMAGES = 512
"""Training images that a trigger is fitted on, at most."""


def cell_attacks(
    cell: Cell,
    data: ImageTensors,
    fitter: Fitter | None = None,
    perturb: attacks.AdversarialPerturbation | None = None,
) -> tuple[Attack, ...]:
    """The triggers of ``cell`` and where each of them leads; ``UserError`` for what does not fit the data set.

    ``fitter`` makes those that are optimised on a clean model; a cell that has none needs none. ``perturb`` is for
    ``clean_label: adversarial``.
    """
    if cell.victim is not None:
        parts = [(cell.victim.trigger, cell.victim.target, "cell.victim.trigger", "cell.victim.target")]
    elif isinstance(cell.attack, tuple):
        parts = [
            (one.attack, one.target, f"cell.attack[{k}].attack", f"cell.attack[{k}].target")
            for k, one in enumerate(cell.attack)
        ]
    elif cell.attack is not None and cell.target is not None:
        parts = [(cell.attack, cell.target, "cell.attack", "cell.target")]
    else:
        raise ValueError("expected a cell with an attack and a target, or with a victim")
    built: list[Attack] = []
    specs: list[object] = []
    for given, target, attack_key, target_key in parts:
        spec = attacks.normal(plain(given), attack_key)
        if spec in specs:
            raise UserError(f"{attack_key}: {_shown(spec)} is listed twice; expected triggers that differ")
        specs.append(spec)
        mapping = attacks.label_map(target, data.num_classes, target_key, cell.clean_label is not None)
        if cell.clean_label == "adversarial" and isinstance(mapping, attacks.CleanLabel):
            if perturb is None:
                raise ValueError("expected what perturbs images of the target class, found nothing")
            mapping = attacks.AdversarialCleanLabel(mapping.target, perturb)
        if attacks.needs_fit(spec):
            if fitter is None:
                raise ValueError(f"expected what fits {spec!r}, found nothing")
            trigger = fitter(spec, target, mapping)
        else:
            seed = derive_seed("trigger", cell.dataset, attack_hash(cell), cell.seed)
            trigger = attacks.build(spec, data.image_shape, seed, attack_key)
        attacks.check_conduct(trigger, data.test.images, attack_key)
        built.append((trigger, mapping))
    return tuple(built)


def clean_cell(cell: Cell, image_shape: tuple[int, int, int]) -> Cell:
    """The clean model that optimised triggers of ``cell`` are fitted to, and adversarial images, as a clean cell.

    One for each data set and training settings, whatever the victim's network or repetition: triggers are then the
    same for all of them, as in the paper. Simplified VGG where it takes the images, else ResNet-18.
    """
    fits = all(side % 8 == 0 for side in image_shape[1:])
    training = cell.training or Training.model_validate(default_training(cell.dataset))
    model = "simplified_vgg" if fits else "resnet18"
    return Cell(dataset=cell.dataset, model=model, training=training, defense={"name": "none"})


def attack_hash(cell: Cell) -> str:
    """The attack without its strength: a larger poison ratio poisons the images of a smaller one and more.

    Nor does it tell whether clean-label images are perturbed first: with and without, they are the same ones.
    """
    tree = cell.model_dump(mode="json", include={"attack", "target", "victim", "clean_label"})
    return content_hash({**tree, "clean_label": True} if cell.clean_label else tree)


class TriggerStore:
    """The fitted triggers under ``cache_dir/triggers``, shared by every process and machine that sees the folder.

    ``get_clean`` gives the clean model of a cell without an attack.
    """

    def __init__(self, cache_dir: Path, get_clean: Callable[[Cell, ImageTensors, torch.device], Victim]) -> None:
        self.folder = Path(cache_dir) / "triggers"
        self._get_clean = get_clean
        self.fitting = Stopwatch()
        """Runs while a trigger is fitted; not while the clean model is trained."""

    def path(self, spec: attacks.Spec, target: Target, clean: Cell) -> Path:
        """Where the trigger lies: its name is a hash of everything that decides it."""
        fit = attacks.fit_of(spec)
        parts = {"name": fit.name, "settings": _settings(fit), "target": target, "clean": clean.victim_id}
        return self.folder / f"{content_hash({'trigger': parts, 'version': FIT_VERSION})}.safetensors"

    def lacks(self, cell: Cell, clean: Cell) -> bool:
        """Whether some optimised trigger of ``cell`` is still to be fitted to ``clean``."""
        wanted = zip(map(attacks.normal, map(plain, _given(cell))), cell.targets, strict=True)
        return any(attacks.needs_fit(spec) and not self.path(spec, target, clean).exists() for spec, target in wanted)

    def get_or_fit(
        self,
        spec: attacks.Spec,
        target: Target,
        mapping: LabelMap,
        cell: Cell,
        data: ImageTensors,
        device: torch.device,
    ) -> attacks.FittedTrigger:
        """The trigger of ``spec`` (normal): from the cache, or fitted now, by one process only.

        A damaged file, or one fitted on other images, is noticed, logged and fitted again.
        """
        clean = clean_cell(cell, data.image_shape)
        path, name = self.path(spec, target, clean), attacks.name_of(spec)
        try:
            return _read(path, data)
        except (attacks.DamagedTriggerError, FileNotFoundError):
            pass  # another process may be at work: judged again below, alone
        with files.locked(path.with_suffix(".lock"), f"trigger {name} {path.stem}"):
            try:
                return _read(path, data)
            except attacks.DamagedTriggerError as damage:
                logger.warning("trigger %s %s is fitted again: %s", name, path.stem, damage)
            except FileNotFoundError:
                logger.info("trigger %s %s is fitted", name, path.stem)
            trigger = self._fit(attacks.fit_of(spec), target, mapping, clean, data, device)
            trigger.name = name
            write_atomically(path, trigger.dumps())
            return trigger

    def _fit(
        self, fit: attacks.Fit, target: Target, mapping: LabelMap, clean: Cell, data: ImageTensors, device: torch.device
    ) -> attacks.FittedTrigger:
        victim = self._get_clean(clean, data, device)
        seed = derive_seed("fit", clean.dataset, fit.name, target)
        changed = mapping.is_poisonable(data.train.labels).nonzero().squeeze(1)
        chosen = changed[torch.randperm(len(changed), generator=torch.Generator().manual_seed(seed))[:FIT_IMAGES]]
        if len(chosen) == 0:
            raise UserError(f"cell.target: found {target!r}; expected training images of another class than the target")
        images = data.train.images[chosen].to(device).float().div_(255).contiguous(memory_format=torch.channels_last)
        wanted = mapping(data.train.labels[chosen]).to(device)
        start = time.perf_counter()
        about: dict[str, Any] = {
            "dataset": clean.dataset,
            "data": fingerprint(data.train),
            "target": target,
            "settings": _settings(fit),
            "seed": seed,
            "fit_version": FIT_VERSION,
            "clean_model": {"id": victim.id, "model": clean.model, "sha256": victim.meta["sha256"]},
            "images": len(chosen),
            "device": device_name(device),
            "versions": {"torch": version("torch")},
        }
        context = attacks.FitContext(victim.model, images, wanted, seed)
        with self.fitting:
            trigger = attacks.run_fit(fit, context, about)
        trigger.provenance = {**trigger.provenance, "seconds": time.perf_counter() - start}
        return trigger


def _given(cell: Cell) -> list[TriggerSpec]:
    """The triggers of ``cell`` as its sweep names them, one for each of its ``targets``."""
    if isinstance(cell.attack, tuple):
        return [one.attack for one in cell.attack]
    given = cell.victim.trigger if cell.victim else cell.attack
    return [] if given is None else [given]


def _settings(fit: Any) -> dict[str, Any]:
    return dataclasses.asdict(fit)


def _shown(spec: attacks.Spec) -> str:
    return repr(attacks.name_of(spec) if attacks.has_name(spec) else spec)


def _read(path: Path, data: ImageTensors) -> attacks.FittedTrigger:
    """Raises ``DamagedTriggerError`` or ``FileNotFoundError``."""
    trigger = attacks.FittedTrigger.load(path)
    if trigger.provenance.get("data") != fingerprint(data.train):
        raise attacks.DamagedTriggerError(f"the images of {data.name!r} are not those it was fitted on")
    return trigger
