"""What attacks and files are called in a report: by as little as tells them apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from adapters.trigger_names import has_name, named
from bench.report.values import mapping, text

File = tuple[str, str]
"""Its path, and the digest of its content or an empty text."""


def attack_label(attack: object, images: Mapping[str, str] | None = None) -> str:
    """As the trigger is called; one with settings never by the bare name, which is the paper's trigger.

    Args:
        attack: as a cell has it: a name, a trigger of ours with settings, an image, or a list of several triggers.
        images: what images are called, by their paths (``apart``); by their files' names where it does not say.
    """
    if has_name(attack):
        settings = {str(key): value for key, value in attack.items() if key != "name"}
        return named(str(attack["name"]), settings)
    if isinstance(attack, dict):
        path, alpha = text(attack.get("image")), attack.get("alpha")
        called = (images or {}).get(path, PurePosixPath(path).name)
        return f"{called} ({text(attack.get('mode'))}{'' if alpha is None else f' {alpha}'})"
    if isinstance(attack, list):
        parts = [mapping(part) for part in attack]
        return ", ".join(f"{attack_label(part.get('attack'), images)}→{text(part.get('target'))}" for part in parts)
    return text(attack)


def image_files(attack: object) -> Iterator[File]:
    """The images among its triggers."""
    for part in attack if isinstance(attack, list) else [{"attack": attack}]:
        trigger = mapping(mapping(part).get("attack"))
        if "image" in trigger:
            yield text(trigger["image"]), text(trigger.get("digest"))


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
