"""Files made to do harm: checkpoints, sweep files, names. One line each, nothing runs, what was recorded stays."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_sweep
import torch
from conftest import Note
from fake_cells import record
from stage import Stage

from adapters import models
from bench import sweep
from bench.records import RecordStore

pytestmark = pytest.mark.timeout(600)


class Payload:
    """Unpickling it makes a file: the proof that code ran."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


def _state(change: Callable[[dict[str, Any]], object], proof: Path) -> dict[str, Any]:
    state = models.build(tiny_sweep.MODEL, tiny_sweep.CLASSES, (3, 16, 16)).state_dict()
    change(state)
    return {"net": state}


def _first_nan(state: dict[str, Any]) -> None:
    next(iter(state.values())).view(-1)[0] = float("nan")


def _wider(state: dict[str, Any]) -> None:
    name = next(iter(state))
    state[name] = torch.zeros(2, *state[name].shape)


CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "hostile pickle": (Payload, "cannot be read as a checkpoint"),
    "hostile pickle beside weights": (
        lambda proof: {**_state(lambda state: None, proof), "x": Payload(proof)}, "code in a checkpoint is never run",
    ),
    "wrong shapes": (lambda proof: _state(_wider, proof), "has shape"),
    "NaN weights": (lambda proof: _state(_first_nan, proof), "NaN or infinite values"),
}  # fmt: skip


def _victim(path: Path) -> dict[str, Any]:
    cell = {"dataset": tiny_sweep.DATASET, "model": tiny_sweep.MODEL, "clean_size": 9, "min_asr": 0.0}
    victim = {"checkpoint": str(path), "trigger": "badnets", "target": 1}
    return {"name": "tiny", "cell": {**cell, "victim": victim}, "grid": {"defense": ["none", "fine_tuning"]}}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint(kind: str, tmp_path: Path, note: Note) -> None:
    make, words = CHECKPOINTS[kind]
    proof, path = tmp_path / "proof", tmp_path / "victim.pth"
    content = make(proof)
    path.write_bytes(pickle.dumps(content)) if kind == "hostile pickle" else torch.save(content, path)
    stage = Stage(tmp_path, _victim(path))
    ended = stage.run()
    assert ended.status == 2, ended
    assert ended.error.count("\n") == 1
    assert words in ended.error
    assert not proof.exists()
    torch.save(_state(lambda state: None, proof), path)
    again = stage.run()
    assert again.status == 0, again
    note(
        f"checkpoint: {kind}", "The sweep's victim is such a file.", stage,
        [*stage.shorten(ended.error), f"exit status {ended.status}"],
        "Nothing was computed. With a sound file in its place the same command runs to its end.",
    )  # fmt: skip


BOMBS: dict[str, str] = {
    "aliases that stand for billions": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "merge keys that stand for millions": "a: &a {" + ", ".join(f"k{n}: 1" for n in range(999)) + "}\n"
    "b: &b {<<: [" + ", ".join(["*a"] * 99) + "]}\nc: &c {<<: [" + ", ".join(["*b"] * 99) + "]}\n",
    "an alias of itself": "name: &a [*a]\n",
    "a hundred thousand brackets": "name: " + "[" * 100_000 + "\n",
    "a grid of 10^16 cells": "name: tiny\ngrid:\n"
    + "".join(f"  {key}: {list(range(1, 10_001))}\n" for key in ("poison_ratio", "clean_size", "radius", "run")),
    "a tag that runs a command": "name: !!python/object/apply:os.system ['touch proof']\n",
    "a number of a million digits": f"name: tiny\nseeds: 0x{'f' * 900_000}\n",
    "a megabyte too many": f"name: {'x' * 1_000_001}\n",
}


def _refused(stage: Stage, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of a sweep file that it refuses: one line, in this process, for Ray is never reached."""
    capsys.readouterr()
    assert sweep.main(stage.arguments()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_yaml_bombs(tmp_path: Path, note: Note, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    stage = Stage(tmp_path, tiny_sweep.tree(grid={"poison_ratio": [0.1], "defense": ["none"]}))
    sound = (tmp_path / "tiny.yaml").read_text()
    for name, text in BOMBS.items():
        (tmp_path / "tiny.yaml").write_text(text)
        error = _refused(stage, capsys)
        assert len(error) < 5000
        seen += [f"{name}:", *(line[:200] for line in stage.shorten(error))]
    assert not (tmp_path / "proof").exists()
    (tmp_path / "tiny.yaml").write_text(sound)
    assert stage.run().status == 0
    note(
        "YAML bombs", "Sweep files that are small and stand for something huge, or that run code in a careless reader.",
        stage, seen, "Nothing was computed or run; a sound file in its place runs to its end.", injected=len(BOMBS),
    )  # fmt: skip


HOSTILE = ["<script>alert(1)</script>", "$(touch proof)", "`touch proof`;'\"", "..", "-rf", "#{7*7} {{7*7}} =1+1"]
"""As names of classes' folders and of data sets, as far as a file system takes them."""


def test_hostile_names(tmp_path: Path, note: Note, capsys: pytest.CaptureFixture[str]) -> None:
    """HTML, commands and paths as the names of a data set, its classes and its images: text, wherever they turn up."""
    stage = Stage(tmp_path, tiny_sweep.tree())
    name = "<script>alert(1)<|script> $(touch proof) `touch proof` '\"; {{7*7}} =1+1"
    for part in ("train", "test"):
        folder = tmp_path / "data" / name / part
        for number, old in enumerate(sorted((tmp_path / "data" / "tiny" / part).iterdir())):
            shutil.copytree(old, folder / f"{number} {HOSTILE[number].replace('/', '|')}")
    tree = tiny_sweep.tree(grid={"poison_ratio": [0.1], "defense": ["none", "fine_tuning"]})
    tree["cell"]["dataset"] = f"image_folder:{name}?size=16"
    stage = Stage(tmp_path, tree)
    ended = stage.run()
    assert ended.status == 0, ended
    page = (stage.out / "tiny" / "report.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1, "more than the page's own"
    assert "&lt;script&gt;alert(1)" in page
    assert not list(tmp_path.rglob("proof"))
    refused = []
    for bad in ("../../etc", "tiny/../..", "~nobody_at_all", "a\x1b[2Jb", "a\0b", "x" * 5000, "tiny\n"):
        for key in ("name", "dataset"):
            wrong = Stage(tmp_path / "wrong", tree)
            changed = {**tree, "name": bad} if key == "name" else {**tree, "cell": {**tree["cell"], "dataset": bad}}
            tiny_sweep.write(wrong.root, changed)
            error = _refused(wrong, capsys)
            assert "\x1b" not in error
            refused += [line[:160] for line in wrong.shorten(error)]
    note(
        "hostile names", "HTML, shell commands, paths, control characters as names of sweeps, data sets and classes.",
        stage, refused, "What can be a name is text wherever it is shown; what cannot is refused in one line.",
        injected=2 + len(refused), others=stage.union().statuses["ok"],
    )  # fmt: skip


def test_a_strangers_records(tmp_path: Path, note: Note) -> None:
    """Records of other cells in the folder: kept, and never taken for this sweep's."""
    stage = Stage(tmp_path, tiny_sweep.tree(grid={"poison_ratio": [0.1], "defense": ["none", "fine_tuning"]}))
    stranger = record("none")
    RecordStore(stage.out / "tiny").append(stranger)
    ended = stage.run()
    assert ended.status == 0, ended
    assert stage.records()[stranger.id] == stranger
    note(
        "records of a stranger", "The folder holds a record of another sweep's cell.", stage,
        stage.shorten(ended.out)[:1], "The record stays; the sweep's own cells are all computed.",
        others=stage.union().statuses["ok"],
    )  # fmt: skip
