"""What attacks and files are called in a report: by as little as tells them apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from adapters.trigger_names import has_name, named
from bench.report.values import mapping, text

File = tuple[str, str]
"""Its path, and the digest of its content or an empty text."""


class Images(NamedTuple):
    """What images and masks are called, by their paths, and which images are used with several masks."""

    names: Mapping[str, str] = {}
    several_masks: frozenset[str] = frozenset()

    def of(self, path: str) -> str:
        return self.names.get(path, PurePosixPath(path).name)


def attack_label(attack: object, images: Images = Images()) -> str:  # noqa: B008  (it is immutable)
    """As the trigger is called; one with settings never by the bare name, which is the paper's trigger.

    ``attack``: as a cell has it: a name, a trigger of ours with settings, an image, or a list of several triggers.
    """
    if has_name(attack):
        settings = {str(key): value for key, value in attack.items() if key != "name"}
        return named(str(attack["name"]), settings)
    if isinstance(attack, dict):
        path, alpha, mask = text(attack.get("image")), attack.get("alpha"), attack.get("mask")
        told = text(attack.get("mode"))
        told += "" if alpha is None else f" {text(alpha)}"
        told += f", mask {images.of(text(mask))}" if mask is not None and path in images.several_masks else ""
        return f"{images.of(path)} ({told})"
    if isinstance(attack, list):
        parts = [mapping(part) for part in attack]
        return ", ".join(f"{attack_label(part.get('attack'), images)}→{text(part.get('target'))}" for part in parts)
    return text(attack)


def images_of(attacks: Iterable[object]) -> Images:
    """The names of all images among the attacks' triggers."""
    triggers = [trigger for attack in attacks for trigger in _image_triggers(attack)]
    masks: dict[str, set[str]] = defaultdict(set)
    for trigger in triggers:
        masks[text(trigger["image"])].add(text(trigger.get("mask")))
    names = apart((text(trigger["image"]), text(trigger.get("digest"))) for trigger in triggers)
    names |= apart((mask, "") for mask in set().union(*masks.values()) if mask)
    return Images(names, frozenset(path for path, each in masks.items() if len(each) > 1))


def _image_triggers(attack: object) -> Iterator[dict[str, Any]]:
    for part in attack if isinstance(attack, list) else [{"attack": attack}]:
        trigger = mapping(mapping(part).get("attack"))
        if "image" in trigger:
            yield trigger


def apart(files: Iterable[File]) -> dict[str, str]:
    """By path, what a file is called: by its name, and by as many folders as tell it from others of that name."""
    found = [(path, PurePosixPath(path), digest) for path, digest in files]
    groups: dict[str, set[tuple[PurePosixPath, str]]] = defaultdict(set)
    for _, file, digest in found:
        groups[file.name].add((file, digest))
    return {path: _called(file, groups[file.name]) for path, file, _ in found}


def _called(file: PurePosixPath, namesakes: Iterable[tuple[PurePosixPath, str]]) -> str:
    if len({digest or str(other) for other, digest in namesakes}) == 1:
        return file.name
    paths, count = {other for other, _ in namesakes}, 1
    while len({other.parts[-count:] for other in paths}) < len(paths):
        count += 1
    return "/".join(file.parts[-count:])
