"""``Cell``: one point of an experiment as a frozen, hashable value. A cell's content hash names its record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.trigger_names import named

SCHEMA_VERSION = 1
"""Version of the cell and of the record (``SCHEMAS`` in docs). Part of every hash."""

Target = Annotated[int, Field(ge=0)] | Literal["all_to_all"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ImageTrigger(Frozen):
    """A trigger of the user's own, read from files (``adapters.attacks.image_trigger``)."""

    image: str
    mode: Literal["add", "replace", "blend"]
    mask: str | None = None
    alpha: Annotated[float, Field(gt=0, le=1)] | None = None
    digest: str = ""
    """SHA-256 of the files' content, filled in by ``bench.spec``: it, not the path, enters the cell's id."""


class NamedTrigger(Frozen):
    """A trigger of ours with settings, ``{name: blend, alpha: 0.1}``: those that are not the defaults, flat.

    What there is to set, and in which range, ``adapters.attacks.normal`` knows; with nothing changed the attack is the
    bare name.
    """

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def title(self) -> str:
        """``blend (alpha 0.1)``, as the trigger itself is called."""
        return named(self.name, self.model_extra or {})


TriggerSpec = str | ImageTrigger | NamedTrigger


class TriggerTarget(Frozen):
    """One of several triggers, with its own target."""

    attack: TriggerSpec
    target: Target


class CheckpointVictim(Frozen):
    """A poisoned model from elsewhere, and the trigger it answers to."""

    checkpoint: str
    trigger: TriggerSpec
    target: Target
    digest: str = ""
    """SHA-256 of the checkpoint file: it, not the path, enters the cell's id."""


class Training(Frozen):
    """How a victim is trained: Adam under a one-cycle schedule. Defaults depend on the data set (``bench.spec``)."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 256
    peak_lr: Annotated[float, Field(gt=0)] = 0.003
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    augment: Literal["none", "crop", "crop_flip"] = "none"


NOT_OF_THE_VICTIM = {
    "defense", "clean_size", "radius", "min_asr", "time_limit", "evasion_radius", "tsne_images", "run",
}  # fmt: skip
"""The keys of a cell that say nothing of the poisoned model."""


class Cell(Frozen):
    """Everything that decides a record's figures, and nothing that does not (device, paths, worker count).

    Either ``attack``, ``target``, ``poison_ratio`` and ``training`` are set, or ``victim`` is; with ``training``
    alone it is a clean model. ``radius`` is None where the defense does not use it. ``defense`` is its name plus
    every setting, defaults filled in.
    """

    dataset: str
    model: str
    attack: TriggerSpec | tuple[TriggerTarget, ...] | None = None
    target: Target | None = None
    mix: Literal["united", "disjoint"] | None = None
    """How several triggers share the training set: one poisoned copy of it for each, united; or one set, in which no
    image carries two (also what None means)."""
    clean_label: Literal[True, "adversarial"] | None = None
    """Poison images of the target class and leave their labels as they are; ``adversarial``: after PGD on a clean model
    (``adapters.attacks.adversarial``)."""
    poison_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    training: Training | None = None
    victim: CheckpointVictim | None = None
    min_asr: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Below this ASR (all-to-all: below this share of its own ACC) the attack counts as failed."""
    clean_size: Annotated[int, Field(ge=1)] | None = None
    radius: Annotated[float, Field(ge=0)] | None = None
    defense: dict[str, Any]
    time_limit: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which a defense stops with what it has."""
    evasion_radius: Annotated[float, Field(ge=0)] | None = None
    """Where given, the defended model's accuracy under ℓ2 PGD of this radius is measured too (``bench.evasion``)."""
    tsne_images: Annotated[int, Field(ge=10)] | None = None
    """Where given, the features of so many scoring images are laid out by t-SNE, before and after the defense
    (``bench.tsne``)."""
    run: Annotated[int, Field(ge=1)] | None = None
    """A further run of the defense on the same victim and clean set: other random choices. None is the first."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The repetition, 0, 1, …; every random choice derives from it and from the cell's parts."""

    @property
    def is_clean(self) -> bool:
        """Whether it is a clean model: nothing is poisoned."""
        return self.attack is None and self.victim is None

    @property
    def targets(self) -> tuple[Target, ...]:
        """Where each trigger leads; empty for a clean model."""
        if isinstance(self.attack, tuple):
            return tuple(one.target for one in self.attack)
        target = self.victim.target if self.victim else self.target
        return () if target is None else (target,)

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits: the content hash that names the cell's record. Found once: plans ask for it often."""
        return content_hash(self.model_dump(mode="json"))

    @cached_property
    def victim_id(self) -> str:
        """Content hash of the parts that decide the poisoned model: shared by cells that differ in the defense."""
        return content_hash({"victim_of": self.model_dump(mode="json", exclude=NOT_OF_THE_VICTIM)})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Cell:
        """As pydantic has it; the copy has hashes of its own."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "victim_id"):
            copied.__dict__.pop(name, None)
        return copied

    def __hash__(self) -> int:
        return hash(self.id)


def plain(trigger: TriggerSpec) -> str | dict[str, Any]:
    """The trigger as ``adapters.attacks`` takes it."""
    return trigger if isinstance(trigger, str) else trigger.model_dump()


def title(trigger: TriggerSpec) -> str:
    """The trigger in a few letters: its name with its settings, or its image's file, with its folder."""
    if isinstance(trigger, str):
        return trigger
    return trigger.title if isinstance(trigger, NamedTrigger) else file_title(trigger.image)


def file_title(path: str) -> str:
    """A file as lines call it: with its folder, since BackdoorBench calls every checkpoint ``attack_result.pt``."""
    return "/".join(path.split("/")[-2:])


def content_hash(tree: Any) -> str:
    """Hash of a JSON tree, blind to key order and to the paths of files whose ``digest`` stands beside them.

    A key whose value is null counts as absent, so that a later optional setting does not rename today's cells.
    """
    text = json.dumps([SCHEMA_VERSION, _without_paths(tree)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_paths(tree: Any) -> Any:
    if isinstance(tree, dict):
        hidden = {"image", "mask", "checkpoint"} if tree.get("digest") else set()
        return {key: _without_paths(value) for key, value in tree.items() if key not in hidden and value is not None}
    if isinstance(tree, list):
        return [_without_paths(value) for value in tree]
    return tree
