"""Wrong input: one line on standard error, exit status 2, no traceback, and earlier records stay."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sweep
import torch
import yaml
from fake_cells import record
from PIL import Image

from bench import sweep

Tree = dict[str, Any]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES_ONCE = tuple(map(int, yaml.__version__.split(".")[:3])) >= (6, 0, 4)
"""Since then PyYAML itself merges each key once, however often it is named: what is left is a file without a name."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with data, and a results folder that holds a record already."""
    tiny_sweep.write_images(tmp_path / "data")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    for name in ("fit.png", "same.png"):
        Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    torch.save({"net": {"a.weight": torch.zeros(3)}}, tmp_path / "shape.pth")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil()))
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "records.jsonl").write_text(EARLIER)
    return tmp_path


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return Path.touch, (Path("evil-was-here"),)  # type: ignore[return-value]


EARLIER = record("none").line().decode()


def _fails(place: Path, capsys: pytest.CaptureFixture[str], content: Tree | str, *arguments: str) -> str:
    """Run the command line; check status and shape of the output; return the line."""
    path = tiny_sweep.write(place, content)
    before = (place / "runs" / "tiny" / "records.jsonl").read_bytes()
    status = sweep.main([str(path), "--data-root", str(place / "data"), "--out", str(place / "runs"), *arguments])
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert (place / "runs" / "tiny" / "records.jsonl").read_bytes() == before
    return error


def _cell(**changes: Any) -> Tree:
    tree = tiny_sweep.tree(grid={"poison_ratio": [0.1], "defense": ["none"]})
    tree["cell"] |= changes
    return tree


def _grid(**axes: Any) -> Tree:
    tree = tiny_sweep.tree(grid={"poison_ratio": [0.1], "defense": ["none"], **axes})
    for key in ", ".join(axes).split(", "):
        tree["cell"].pop(key, None)
    return tree


def _several(*attacks: Tree) -> Tree:
    return _cell(attack=list(attacks), target=None)


def _victim(checkpoint: str, **changes: Any) -> Tree:
    cell = {"dataset": "digits", "model": "simplified_vgg", "clean_size": 9, "defense": "none"}
    victim = {"checkpoint": checkpoint, "trigger": "badnets", "target": 1, **changes}
    return {"name": "tiny", "cell": {**cell, "victim": victim}}


CASES: dict[str, tuple[Tree | str, str]] = {
    "unknown key of the file": (tiny_sweep.tree(colour="red"), "colour: unknown key; expected one of: name, cell"),
    "unknown key of the cell": (_cell(colour="red"), "cell.colour: unknown key; expected one of: dataset, model"),
    "unknown axis": (_grid(colour=["red"]), "grid.colour: unknown key"),
    "unknown key of training": (_cell(training={"epoch": 3}), "cell.training.epoch: unknown key; expected one of"),
    "unknown resource": (tiny_sweep.tree(resources={"tpu": 1}), "resources.tpu: unknown key; expected one of: cpu"),
    "unknown setting of a defense": (
        _grid(defense=[{"name": "ibau", "round": 2}]),
        "grid.defense.round: unknown setting of ibau",
    ),
    "setting of a defense on an axis": (
        tiny_sweep.tree(grid={"poison_ratio": [0.1], "defense.name": ["ibau"], "defense.rounds": [0]}),
        "grid.defense.rounds: found 0",
    ),
    "setting of a defense in the cell": (
        {**_cell(defense={"name": "ibau", "round": 2}), "grid": {"poison_ratio": [0.1]}},
        "cell.defense.round: unknown setting of ibau",
    ),
    "seed in the cell": (_cell(seed=3), "cell.seed: unknown key"),
    "unused radius": (_cell(radius=5.0), "cell.radius: unused key"),
    "unused axis": (_grid(radius=[1.0, 2.0]), "grid.radius: unused key"),
    "key set twice": (_cell(poison_ratio=0.2), "cell.poison_ratio: unused key"),
    "unused alpha": (_cell(attack={"image": "small.png", "mode": "add", "alpha": 0.2}), "alpha: not used by mode"),
    "unknown data set": (_cell(dataset="mnist"), "unknown name 'mnist'; expected one of: cifar10"),
    "absent data set": (_cell(dataset="image_folder:absent"), "absent"),
    "unknown model": (_cell(model="resnet1"), "cell.model: unknown name 'resnet1'"),
    "unknown trigger": (_cell(attack="smiley"), "cell.attack: unknown name 'smiley'; expected one of: badnets"),
    "unknown trigger on an axis": (_grid(attack=["badnets", "smiley"]), "grid.attack: unknown name"),
    "no training data": (
        {"name": "tiny", "cell": {**_victim("shape.pth")["cell"], "defense": "dp_sgd"}},
        "found 'dp_sgd' with a victim from a checkpoint, which brings no training data",
    ),
    "unknown defense": (
        _grid(defense=["none", "prayer"]),
        "grid.defense: unknown name 'prayer'; expected one of: deep_inspect",
    ),
    "one of several keys on an axis": (
        _grid(**{"attack, target": [["badnets", 0], ["blend", "all_to_al"]]}),
        "grid.attack, target (target): found 'all_to_al'; expected a valid integer, or 'all_to_all'",
    ),
    "a setting of one of several keys on an axis": (
        _grid(**{"attack, target": [["badnets", 0], [{"name": "blend", "alpha": 3}, 1]]}),
        "grid.attack, target (attack).alpha: found 3; expected less than or equal to 1",
    ),
    "a trigger listed twice": (
        _several(*[{"attack": name, "target": 0} for name in ("badnets", "blend", "badnets")]),
        "cell.attack.2.attack: 'badnets' is listed twice; expected triggers that differ",
    ),
    "a trigger listed twice, with its default": (
        _grid(
            target=[None],
            attack=[[{"attack": {"name": "blend", "alpha": 0.2}, "target": 0}, {"attack": "blend", "target": 1}]],
        ),
        "grid.attack.1.attack: 'blend' is listed twice",
    ),
    "an image listed twice": (
        _several(*[{"attack": {"image": name, "mode": "add"}, "target": 0} for name in ("fit.png", "same.png")]),
        "same.png' is listed twice",
    ),
    "poison ratio 0": (_grid(poison_ratio=[0]), "grid.poison_ratio: found 0; expected greater than 0"),
    "poison ratio 1.5": (_grid(poison_ratio=[1.5]), "grid.poison_ratio: found 1.5; expected less than 1"),
    "poison ratio a text": (_grid(poison_ratio=["0.1"]), "grid.poison_ratio: found '0.1'; expected a valid number"),
    "clean label of all to all": (
        _cell(target="all_to_all", clean_label="adversarial"),
        "cell.target: found 'all_to_all'; expected a label, for clean_label",
    ),
    "clean label unknown": (_cell(clean_label="pgd"), "cell.clean_label: found 'pgd'; expected true or 'adversarial'"),
    "clean label beyond its class": (
        _cell(clean_label="adversarial", poison_ratio=None) | {"grid": {"poison_ratio": [0.9], "defense": ["none"]}},
        "grid.poison_ratio: found 0.9, 54 of 60 training images; expected at most 0.3333 (20 images are of the target",
    ),
    "poison ratio not attainable": (_grid(poison_ratio=[0.1, 0.9]), "grid.poison_ratio: found 0.9"),
    "clean size over the pool": (_cell(clean_size=500), "cell.clean_size: found 500; expected at least 1 and at most"),
    "clean size 0": (_cell(clean_size=0), "cell.clean_size: found 0"),
    "more images laid out than there are": (
        _grid(tsne_images=[None, 25]),
        "grid.tsne_images: found 25; expected at most 24, the scoring images of 'image_folder:tiny?size=16'",
    ),
    "negative radius": (_grid(radius=[-1.0], defense=["ibau"]), "grid.radius: found -1.0; expected greater than"),
    "infinite radius": (_grid(radius=[float("inf")], defense=["ibau"]), "expected a finite number"),
    "target out of range": (_cell(target=3), "cell.target: found 3; expected a label from 0 to 2"),
    "negative target": (_cell(target=-1), "cell.target: found -1"),
    "true as a target": (_cell(target=True), "cell.target: found True"),
    "target a word": (_cell(target="all"), "cell.target: found 'all'; expected a valid integer, or 'all_to_all'"),
    "target of a checkpoint a word": (
        _victim("shape.pth", target="all"),
        "cell.victim.target: found 'all'; expected a valid integer, or 'all_to_all'",
    ),
    "target of one of several a word": (
        _several({"attack": "badnets", "target": "all"}),
        "cell.attack.0.target: found 'all'; expected a valid integer, or 'all_to_all'",
    ),
    "share of a GPU a word": (tiny_sweep.tree(resources={"gpu": "all"}), "expected a valid number, or 'auto'"),
    "negative run": (_cell(run=-1), "cell.run: found -1; expected greater than or equal to 0"),
    "negative run on an axis": (_grid(run=[0, -1]), "grid.run: found -1; expected greater than or equal to 0"),
    "target of a clean model": (_cell(attack="none"), "for a clean model (attack: none) has no target\n"),
    "poison ratio of a clean model": (
        _cell(attack="none", target=None, min_asr=None, clean_size=None),
        "grid.poison_ratio: unused key; expected it to be left out, for a clean model (attack: none) has no poison_",
    ),
    "ASR of a clean model": (
        {**_cell(attack="none", target=None, min_asr=0.5), "grid": {"defense": ["none"]}},
        "cell.min_asr: unused key; expected it to be left out, for a clean model (attack: none) has no ASR to reach",
    ),
    "attack beside a checkpoint": (
        {**_cell(victim=_victim("shape.pth")["cell"]["victim"]), "grid": {"defense": ["none"]}},
        "cell.attack: unused key; expected it to be left out, for a victim from a checkpoint brings its own\n",
    ),
    "target of a list of attacks": (
        _cell(attack=[{"attack": "badnets", "target": 0}]),
        "cell.target: unused key; expected it to be left out, for a list of attacks brings its own\n",
    ),
    "target of a list of attacks and of a clean model": (
        {**_grid(attack=["none", [{"attack": "badnets", "target": 0}]])},
        "for a clean model (attack: none) has no target, and a list of attacks brings its own\n",
    ),
    "empty grid": (tiny_sweep.tree(grid={}), "grid: found {}; expected at least one axis"),
    "empty axis": (_grid(radius=[]), "grid.radius: found []; expected a list"),
    "axis without a list": (_grid(poison_ratio=0.1), "grid.poison_ratio: found 0.1; expected a list"),
    "no seeds": (tiny_sweep.tree(seeds=0), "seeds: found 0; expected greater than or equal to 1"),
    "no CPU": (tiny_sweep.tree(resources={"cpu": 0}), "resources.cpu: found 0"),
    "name with a path": (tiny_sweep.tree(name="../tiny"), "name: found '../tiny'"),
    "name missing": ("cell: {}\n", "name: found nothing"),
    "defense missing": (tiny_sweep.tree(grid={"poison_ratio": [0.1]}), "cell.defense: found nothing"),
    "invalid YAML": ("name: [tiny\n", "invalid YAML"),
    "a tag that builds an object": ("name: !!python/object/apply:os.system ['touch x']\n", "invalid YAML at line 1"),
    "a key twice": ("name: a\nname: b\n", "key 'name' is given twice"),
    "aliases without bound": (BOMB, "values or"),
    "recursive alias": ("name: &a [*a]\n", "values or"),
    "merge keys without bound": (
        "a: &a {" + ", ".join(f"k{n}: 1" for n in range(999)) + "}\n"
        "b: &b {<<: [" + ", ".join(["*a"] * 99) + "]}\nc: &c {<<: [" + ", ".join(["*b"] * 99) + "]}\n",
        "name: found nothing" if MERGES_ONCE else "without bound",
    ),
    "no mapping": ("- 1\n- 2\n", "expected a mapping"),
    "not text": ("name: \x00\n", "invalid YAML"),
    "missing checkpoint": (_victim("absent.pth"), "cell.victim.checkpoint: found no file 'absent.pth'; looked at"),
    "checkpoint of another shape": (_victim("shape.pth"), "does not fit the model"),
    "malicious checkpoint": (_victim("evil.pth"), "victim.checkpoint"),
    "unknown key of victim": (_victim("shape.pth", epoch=3), "cell.victim.epoch: unknown key; expected one of"),
    "unreadable trigger": (_cell(attack={"image": "broken.png", "mode": "add"}), "broken.png"),
    "absent trigger": (_cell(attack={"image": "absent.png", "mode": "add"}), "cell.attack.image: found no file"),
    "trigger of another size": (_cell(attack={"image": "small.png", "mode": "add"}), "small.png"),
    "unknown mode": (_cell(attack={"image": "small.png", "mode": "glue"}), "cell.attack.mode: found 'glue'"),
    "digest given": (_cell(attack={"image": "small.png", "mode": "add", "digest": "1"}), "digest: unknown key"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_sweep_files(
    name: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("bench.cluster.ClusterStart", _NoCluster)
    content, expected = CASES[name]
    assert expected in _fails(place, capsys, content)
    assert not (place / "evil-was-here").exists()


class _NoCluster:
    """In the place of Ray, which a wrong sweep file must not need."""

    def __init__(self, *_: Any) -> None:
        self.error = AssertionError("Ray was waited for")

    def start(self) -> None:
        return None

    def wait(self) -> None:
        raise self.error

    def stop(self) -> None:
        return None


ARGUMENTS = {
    "file": (["--set", "cell.colour=red"], "cell.colour: unknown key"),
    "no value": (["--set", "cell.target"], "--set: found 'cell.target'; expected PATH.TO.KEY=VALUE"),
    "a key of a number": (["--set", "cell.target.x=1"], "cell.target is 1; expected a mapping"),
    "a tag": (["--set", "cell.target=!!python/name:os.system"], "invalid YAML"),
    "no concurrency": (["--max-concurrent", "0"], "--max-concurrent: found 0"),
    "no port": (["--address", "somewhere"], "--address: found 'somewhere'; expected HOST:PORT"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_arguments(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = ARGUMENTS[name]
    assert expected in _fails(place, capsys, _cell(), *arguments)


def test_an_address_nobody_answers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert "--address: nobody answers" in _fails(place, capsys, _cell(), "--address", f"127.0.0.1:{port}")


def test_an_absent_sweep_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([str(place / "absent.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("out", ["file", "/proc/nowhere"])
def test_an_unwritable_out(out: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").write_text("in the way")
    path = tiny_sweep.write(place, _cell())
    assert sweep.main([str(path), "--data-root", str(place / "data"), "--out", str(place / out)]) == 2
    assert capsys.readouterr().err.startswith("error: --out: cannot write to")


def test_records_of_another_schema(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "runs" / "tiny" / "records.jsonl").write_text('{"schema": 999}\n')
    assert "schema 999; expected 1" in _fails(place, capsys, _cell())
