"""The committed victims are what their metadata say, and those of the committed baselines."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.attacks import FittedTrigger
from bench import includes, spec, victim_files

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "results" / "zoo"
VICTIMS = sorted(path for path in (ZOO / "victims").glob("*.json") if not path.name.endswith(".scores.json"))


@pytest.mark.parametrize("path", VICTIMS, ids=lambda path: path.stem)
def test_a_victim_is_what_it_says(path: Path) -> None:
    meta = victim_files.read_sealed(path)
    assert meta["id"] == path.stem
    state = victim_files.read_state(path.with_suffix(".safetensors"), meta["sha256"])
    assert all(bool(one.isfinite().all()) for one in state.values())
    kept = {FittedTrigger.load(one).digest for one in (ZOO / "triggers").glob("*.safetensors")}
    assert set(meta["fitted"].values()) <= kept


@pytest.mark.parametrize("name", ["baselines_gtsrb_short", "baselines_gtsrb_firm", "baselines_cifar10_short"])
def test_the_victims_of_the_baselines_are_there(name: str) -> None:
    cells = spec.load(ROOT / "sweeps" / f"{name}.yaml", (), ROOT / "data").cells
    assert {cell.victim_id for cell in cells} <= {path.stem for path in VICTIMS}


def test_the_victims_of_the_papers_tables_on_gtsrb_are_there() -> None:
    """But for Table 7's networks, of 20 to 45 MB each."""
    cells = includes.load(ROOT / "sweeps" / "paper_gtsrb.yaml", (), ROOT / "data", "gtsrb").cells
    needed = {cell.victim_id for cell in cells if cell.model == "simplified_vgg"}
    assert len(needed) == 4
    assert needed <= {path.stem for path in VICTIMS}
