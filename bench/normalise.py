"""One combination of a sweep's grid to a cell: defaults filled in, what plays no part taken out, files digested.

Combinations that would give the same figures become equal cells, and so one record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters import attacks, defenses
from adapters.errors import UserError
from adapters.protocols import Defense
from bench import files
from bench.cells import Cell, CheckpointVictim, ImageTrigger, Training, TriggerTarget, content_hash, title
from bench.training import default_training
from bench.validation import validated

DEFAULT_RADIUS = 10.0
"""C_delta where a defense uses it and the sweep names none: the paper's."""

KNOWN_KEYS = tuple(name for name in Cell.model_fields if name != "seed")
CLEAN = "none"
"""The attack of a clean model."""
DEFAULT_MIX = "united"
"""How several triggers share a training set where the sweep does not say: the paper's way."""

ATTACK_KEYS = frozenset({"attack", "target", "poison_ratio", "training"})
"""What a victim from a checkpoint makes superfluous."""


class Normaliser:
    """Makes cells of trees. ``used`` gathers the keys that at least one cell depends on.

    Defenses, files and triggers occur in many combinations; each is checked and digested once.
    """

    def __init__(self, key_of: Callable[[str], str], folders: Sequence[Path]) -> None:
        self.used: set[str] = set()
        self._key_of = key_of
        self._folders = folders
        self._cache: dict[str, Any] = {}

    def cell(self, tree: Mapping[str, Any], seed: int) -> Cell:
        """The cell of one combination and repetition; raises ``UserError`` naming the key at fault."""
        parts = {name: value for name, value in tree.items() if value is not None}
        cell: dict[str, Any] = {"seed": seed}
        for name in ("dataset", "model", "defense"):
            if name not in parts:
                raise UserError(f"cell.{name}: found nothing; expected a name, in cell or as an axis of grid")
        cell |= self._victim(parts)
        for name in ("dataset", "model", "min_asr", "time_limit", "evasion_radius", "tsne_images", "run"):
            if name in parts:
                cell[name] = parts[name]
        run = parts.get("run")
        if type(run) is int and run < 0:
            raise UserError(f"{self._key_of('run')}: found {run}; expected greater than or equal to 0, the first run")
        if type(run) is int and run == 0:  # the first run, which a cell need not name
            del cell["run"]
            self.used.add("run")
        cell |= self._defense(parts)
        if "attack" not in cell and "victim" not in cell:
            self._clean(cell, parts)
        self.used |= cell.keys() & parts.keys()
        # A key that says null asks for the default, which is no use that could be wrong.
        self.used |= {name for name in tree if tree[name] is None}
        return validated(Cell, cell, self._key_of)

    def _clean(self, cell: dict[str, Any], parts: Mapping[str, Any]) -> None:
        """Take out what says nothing of a clean model: which ASR it is to have, and without a defense its clean set."""
        self.used.add("attack")
        cell.pop("min_asr", None)
        if "clean_size" not in self._once("defense", parts["defense"], self._build_defense).uses:
            cell.pop("clean_size", None)

    def _defense(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        defense = self._once("defense", parts["defense"], self._build_defense)
        settings = self._once("settings", parts["defense"], lambda _: defense.model_dump(mode="json"))
        cell: dict[str, Any] = {"defense": {"name": defense.name, **settings}}
        if "clean_size" in parts:
            # Kept whatever the defense: the error gap is taken on the clean set.
            cell["clean_size"] = parts["clean_size"]
        elif "clean_size" in defense.uses:
            raise UserError(f"cell.clean_size: found nothing; expected how many images {defense.name!r} may use")
        if defense.needs_training_data and "victim" in parts:
            key = self._key_of("defense")
            raise UserError(
                f"{key}: found {defense.name!r} with a victim from a checkpoint, which brings no training data;"
                " expected a victim that is trained here (attack, target, poison_ratio)"
            )
        if "radius" in defense.uses:
            cell["radius"] = parts.get("radius", DEFAULT_RADIUS)
        return cell

    def _build_defense(self, spec: Any) -> Defense:
        if not isinstance(spec, str) and not (isinstance(spec, dict) and isinstance(spec.get("name"), str)):
            key = self._key_of("defense")
            raise UserError(f"{key}: found {spec!r}; expected a name, or a mapping such as {{name: ibau, rounds: 2}}")
        with self._own_keys():
            return defenses.build(spec)

    def _victim(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """The keys that say which poisoned model: ``victim``, or those of ``ATTACK_KEYS``."""
        if "victim" in parts:
            return {"victim": self._once("victim", parts["victim"], self._checkpoint)}
        if parts.get("attack") == CLEAN:
            return {"training": self._training(parts)}
        for name in ("attack", "poison_ratio"):
            if name not in parts:
                raise UserError(f"cell.{name}: found nothing; expected it, or a victim from a checkpoint")
        attack = parts["attack"]
        cell: dict[str, Any] = {
            "attack": self._once("attack", attack, self._attack),
            "poison_ratio": parts["poison_ratio"],
            "training": self._training(parts),
        }
        if isinstance(attack, list):
            cell["mix"] = parts.get("mix", DEFAULT_MIX)
        elif "target" in parts:
            cell["target"] = parts["target"]
            if parts.get("clean_label") is False:
                self.used.add("clean_label")
            elif "clean_label" in parts:
                cell["clean_label"] = parts["clean_label"]
        else:
            raise UserError("cell.target: found nothing; expected a class number or all_to_all")
        return cell

    def _training(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        given = parts.get("training", {})
        if not isinstance(given, Mapping):
            key = self._key_of("training")
            raise UserError(f"{key}: found {given!r}; expected a mapping with {', '.join(Training.model_fields)}")
        tree = {**default_training(str(parts["dataset"])), **given}
        checked: dict[str, Any] = self._once("training", tree, self._check_training)
        return checked

    def _check_training(self, tree: dict[str, Any]) -> dict[str, Any]:
        return validated(Training, tree, self._under("training")).model_dump(mode="json")

    def _checkpoint(self, tree: Any) -> dict[str, Any]:
        key = self._key_of("victim")
        if not isinstance(tree, Mapping):
            raise UserError(f"{key}: found {tree!r}; expected a mapping with checkpoint, trigger and target")
        _refuse_digest(tree, key)
        if "trigger" in tree:
            tree = {**tree, "trigger": self._trigger(tree["trigger"], "victim.trigger")}
        victim = validated(CheckpointVictim, tree, self._under("victim"))
        path = files.find(victim.checkpoint, f"{key}.checkpoint", self._folders)
        return {
            "checkpoint": str(path),
            "digest": attacks.digest([path], f"{key}.checkpoint"),
            "trigger": tree["trigger"],
            "target": victim.target,
        }

    def _attack(self, spec: Any) -> Any:
        key = self._key_of("attack")
        if not isinstance(spec, list):
            return self._trigger(spec, "attack")
        if not spec:
            raise UserError(f"{key}: found an empty list; expected at least one {{attack, target}}")
        rows, seen = [], set[str]()
        for number, row in enumerate(spec):
            if not isinstance(row, Mapping):
                raise UserError(f"{key}.{number}: found {row!r}; expected a mapping with attack and target")
            tree = dict(row)
            if "attack" in tree:
                tree["attack"] = self._trigger(tree["attack"], f"attack.{number}.attack")
            one = validated(TriggerTarget, tree, self._under(f"attack.{number}"))
            if content_hash(tree["attack"]) in seen:
                where = self._key_of(f"attack.{number}.attack")
                raise UserError(f"{where}: {title(one.attack)!r} is listed twice; expected triggers that differ")
            seen.add(content_hash(tree["attack"]))
            rows.append(tree)
        return rows

    def _trigger(self, spec: Any, path: str) -> Any:
        """A trigger's name, with the settings that are not its defaults; an image's mapping, files found and digested.

        ``path``: where in the cell it stands, ``attack``, ``attack.0.attack`` or ``victim.trigger``.
        """
        key = f"cell.{path}"
        with self._own_keys():
            if not isinstance(spec, Mapping):
                if not isinstance(spec, str):
                    wanted = "a trigger's name, {name: NAME, SETTING: VALUE} or {image: PATH, mode: add}"
                    raise UserError(f"{key}: found {spec!r}; expected {wanted}")
                return spec
            if attacks.has_name(spec):
                return attacks.normal(spec, key)
            _refuse_digest(spec, key)
            validated(ImageTrigger, spec, key)
            tree = dict(spec)
            for part in ("image", "mask"):
                if tree.get(part) is not None:
                    tree[part] = str(files.find(tree[part], f"{key}.{part}", self._folders))
            attacks.check(tree, key)
            tree["digest"] = attacks.digest([tree["image"], tree.get("mask")], key)
            return tree

    @contextmanager
    def _own_keys(self) -> Iterator[None]:
        """A ``UserError`` that names a key of the cell names the sweep file's own instead."""
        try:
            yield
        except UserError as error:
            key, colon, rest = str(error).partition(": ")
            if not colon or not key.startswith("cell."):
                raise
            raise UserError(f"{self._key_of(key.removeprefix('cell.'))}: {rest}") from error

    def _under(self, path: str) -> Callable[[str], str]:
        """The sweep file's own name of a key below ``path``."""
        return lambda key: self._key_of(f"{path}.{key}")

    def _once(self, kind: str, spec: Any, make: Callable[[Any], Any]) -> Any:
        text = f"{kind}:{json.dumps(spec, sort_keys=True, default=str)}"
        if text not in self._cache:
            self._cache[text] = make(spec)
        return self._cache[text]


def _refuse_digest(tree: Mapping[str, Any], key: str) -> None:
    if "digest" in tree:
        raise UserError(f"{key}.digest: unknown key; expected it to be left out, for it is computed from the file")
