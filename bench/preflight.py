"""What can be known to be wrong before the first cell runs, found out first, one line each.

``check_names`` looks at names and files and takes no time; ``check_data`` decodes the data sets and builds the
models, which the sweep needs anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapters import attacks, checkpoints, datasets, defenses, models
from adapters.errors import UserError
from adapters.protocols import Defense, ImageTensors
from bench.cells import Cell, plain
from bench.spec import SweepPlan
from bench.splits import check_clean_size
from bench.triggers import clean_cell
from bench.validation import in_file

Target = int | str


def check_names(plan: SweepPlan) -> None:
    """Data sets, models and triggers are known, checkpoints are state dicts; ``UserError`` otherwise."""
    for part in plan.parts:
        with in_file(part.source):
            check_names(part)
    if plan.parts:
        return
    for name in dict.fromkeys(cell.dataset for cell in plan.cells):
        _at(plan, "dataset", lambda name=name: datasets.check_name(name))
    for name in dict.fromkeys(cell.model for cell in plan.cells):
        _at(plan, "model", lambda name=name: models.check_name(name))
    for cell in distinct_victims(plan.cells):
        for spec, _, key in _triggers(cell):
            _at(plan, key, lambda spec=spec, key=key: attacks.check(spec, plan.key(key)))


class Sizes(NamedTuple):
    """Of a data set: its training and its scoring images, and its classes."""

    training: int
    scoring: int
    classes: int


class Checked(NamedTuple):
    """What the check of the data leaves behind.

    ``costs``: each victim's by id, in training images times the model's operations, good for sorting only.
    ``shapes``: (C, H, W) of each data set's images. ``weights``: by data set and model, the multiplications of one
    image's forward pass. ``sizes``: by data set.
    """

    costs: dict[str, float]
    shapes: dict[str, tuple[int, int, int]]
    weights: dict[tuple[str, str], float]
    sizes: dict[str, Sizes]


def check_data(plan: SweepPlan, cache_dir: Path) -> Checked:
    """All fits the data: targets, poison ratios, clean sizes, defenses, triggers, checkpoints; else ``UserError``."""
    try:
        return _check_data(plan, cache_dir)
    except UserError:
        for part in plan.parts:  # which of the files it is
            with in_file(part.source):
                _check_data(part, cache_dir)
        raise


def _check_data(plan: SweepPlan, cache_dir: Path) -> Checked:
    loaded = {
        name: datasets.load(name, plan.data_root, cache_dir) for name in dict.fromkeys(c.dataset for c in plan.cells)
    }
    sizes = {(cell.dataset, cell.clean_size) for cell in plan.cells if cell.clean_size is not None}
    for name, size in sorted(sizes):
        check_clean_size(loaded[name].pool_size, size, plan.key("clean_size"))
    for name, count in sorted({(cell.dataset, cell.tsne_images or 0) for cell in plan.cells}):
        _check_tsne_images(plan, loaded[name], count)
    for made, size in _with_sizes(plan.cells):
        made.check_clean_size(size, plan.key("defense"))
    weights: dict[tuple[str, str], float] = {}
    checked: set[Any] = set()
    costs = {}
    for cell in distinct_victims(plan.cells):
        data = loaded[cell.dataset]
        key = cell.model_copy(update={"seed": 0}).victim_id
        if key not in checked:
            checked.add(key)
            _check_victim(plan, cell, data)
        for model in _networks(cell, data):
            if (cell.dataset, model) not in weights:
                weights[cell.dataset, model] = multiplications(model, data)
        epochs = cell.training.epochs if cell.training else 0
        copies = len(cell.targets) if cell.mix == "united" else 1
        costs[cell.victim_id] = weights[cell.dataset, cell.model] * len(data.train.labels) * copies * epochs
    shapes = {name: data.image_shape for name, data in loaded.items()}
    found = {
        name: Sizes(len(data.train.labels), _scoring_images(data), data.num_classes) for name, data in loaded.items()
    }
    return Checked(costs, shapes, weights, found)


def _scoring_images(data: ImageTensors) -> int:
    return len(data.test.labels) - data.pool_size


def _check_tsne_images(plan: SweepPlan, data: ImageTensors, count: int) -> None:
    if count > (most := _scoring_images(data)):
        wanted = f"at most {most}, the scoring images of {data.name!r}"
        raise UserError(f"{plan.key('tsne_images')}: found {count}; expected {wanted}")


def _with_sizes(cells: tuple[Cell, ...]) -> Iterator[tuple[Defense, int]]:
    """Each defense with each clean size that it is to run with."""
    pairs = {(str(cell.defense), cell.clean_size): cell for cell in cells}
    for (_, size), cell in pairs.items():
        if size is not None:
            yield defenses.build(cell.defense), size


def distinct_victims(cells: tuple[Cell, ...]) -> list[Cell]:
    """One cell for each victim, in the order of the plan."""
    return list({cell.victim_id: cell for cell in reversed(cells)}.values())[::-1]


def _check_victim(plan: SweepPlan, cell: Cell, data: ImageTensors) -> None:
    maps = []
    for spec, target, key in _triggers(cell):
        if not attacks.needs_fit(spec):
            trigger = attacks.build(spec, data.image_shape, 0, plan.key(key))
            attacks.check_conduct(trigger, data.test.images, plan.key(key))
        clean = cell.clean_label is not None
        maps.append(attacks.label_map(target, data.num_classes, plan.key(_target_key(key)), clean))
    if cell.poison_ratio is not None:
        sharing = [[one] for one in maps] if cell.mix == "united" else [maps]
        for together in sharing:
            attacks.poison_count(data.train.labels, together, cell.poison_ratio, plan.key("poison_ratio"))
    if cell.victim is not None:
        path = Path(cell.victim.checkpoint)
        model = models.build(cell.model, data.num_classes, data.image_shape)
        _at(plan, "victim.checkpoint", lambda: checkpoints.load_into(model, path))


def _triggers(cell: Cell) -> Iterator[tuple[Any, Target, str]]:
    """Each trigger of ``cell`` as ``adapters.attacks`` takes it, its target, and the key that names it."""
    if cell.victim is not None:
        yield plain(cell.victim.trigger), cell.victim.target, "victim.trigger"
    elif isinstance(cell.attack, tuple):
        for number, one in enumerate(cell.attack):
            yield plain(one.attack), one.target, f"attack.{number}.attack"
    elif cell.attack is not None and cell.target is not None:
        yield plain(cell.attack), cell.target, "attack"


def _networks(cell: Cell, data: ImageTensors) -> Iterator[str]:
    """The victim's, and that of the clean model which its triggers or its adversarial images may need."""
    yield cell.model
    if cell.clean_label == "adversarial" or any(attacks.needs_fit(spec) for spec, _, _ in _triggers(cell)):
        yield clean_cell(cell, data.image_shape).model


def _target_key(key: str) -> str:
    parents, _, _ = key.rpartition(".")
    return f"{parents}.target" if parents else "target"


def multiplications(name: str, data: ImageTensors) -> float:
    """Multiplications of one forward pass in convolutions and linear layers, which is nearly all of them."""
    model = models.build(name, data.num_classes, data.image_shape).eval()
    total = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        weight = module.weight
        if isinstance(output, Tensor) and isinstance(weight, Tensor):
            total += output.numel() * weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *data.image_shape))
    return float(total)


def _at(plan: SweepPlan, name: str, check: Any) -> None:
    """Run ``check``; where its error names the key of a cell, name the sweep file's own key instead."""
    try:
        check()
    except UserError as error:
        key, colon, rest = str(error).partition(": ")
        known = key in (name, f"cell.{name}")
        raise UserError(f"{plan.key(name)}: {rest}" if colon and known else str(error)) from error
