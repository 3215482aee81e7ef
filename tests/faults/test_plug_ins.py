"""Defenses that misbehave, all in one sweep: each has a record that says what it did, the sound ones have theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import faulty
import pytest
import tiny_sweep
from conftest import Note
from stage import WITH_FAULTS, Ended, Stage

from bench.records import Record

pytestmark = pytest.mark.timeout(1200)

GO_ON = "The sweep goes on with its other cells by itself; `--retry-failed` runs the failed ones again."


class Case(NamedTuple):
    """``fault``: its name in the document. ``reason``: what the record must say."""

    fault: str
    how: str
    status: str
    reason: str
    time_limit: float | None = None


CASES: Mapping[str, Case] = {
    "raises": Case(
        "defense raises", "A defense raises an exception with an escape sequence, half a letter, HTML and a command"
        " in its message.", "failed", r"RuntimeError: it broke \x1b[2J\udcff <script>alert(1)</script> $(touch here) (",
    ),
    "returns_nothing": Case(
        "defense returns nothing", "A defense returns `None`.", "failed",
        "TypeError: defense 'returns_nothing' returned NoneType; expected a DefenseResult",
    ),
    "returns_another_shape": Case(
        "defense returns a model of another shape", "A defense returns a network with seven logits for three classes.",
        "failed", "gives (2, 7); expected (2, 3)",
    ),
    "returns_another_status": Case(
        "defense returns a status of its own", "A defense says that it is `excellent`.", "failed",
        "returned the status 'excellent'; expected one of",
    ),
    "diverges_unnoticed": Case(
        "NaN loss in a defense", "A defense tunes at a rate at which the loss becomes NaN, and says `ok`.", "diverged",
        "NaN or infinite values in ",
    ),
    "hangs": Case(
        "defense hangs", "A defense sleeps for ever and catches every exception; `time_limit` is one second.",
        "timeout", "it did not stop at its time_limit of 1 s, and was ended", 1.0,
    ),
    "hangs_in_native_code": Case(
        "defense hangs in native code", "A defense waits for ever in native code that holds the interpreter's lock;"
        " `time_limit` is one second.", "failed", "its worker died 2 times", 1.0,
    ),
    "out_of_memory": Case(
        "trial out of memory", "`ibau` where each image of a pass takes 64 MiB more than the process may have.", "ok",
        "",
    ),
    "out_of_memory_for_good": Case(
        "trial out of memory, whatever its micro-batches", "A defense wants 256 TiB and cannot do with less.", "failed",
        "out of memory: RuntimeError: ",
    ),
    "exits": Case("defense exits", "A defense calls `sys.exit(3)`.", "failed", "SystemExit: 3"),
    "kills_its_worker": Case(
        "defense ends its worker", "A defense ends in a segmentation fault.", "failed", "its worker died 2 times",
    ),
}  # fmt: skip
SOUND: list[Any] = [
    "none",
    {"name": "ibau", "recipe": "reference_gtsrb", "rounds": 1, "carriers": 0.2},
    {"name": "fine_tuning"},
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The sweep of all of them, on two victims."""
    rows = [[name, case.time_limit] for name, case in CASES.items()] + [[one, None] for one in SOUND]
    tree = tiny_sweep.tree(grid={"poison_ratio": [0.1, 0.3], "defense, time_limit": rows})
    return Stage(tmp_path_factory.mktemp("plug-ins"), tree, WITH_FAULTS)


def test_every_faulty_defense_is_in_the_sweep() -> None:
    assert set(CASES) == {one.name for one in faulty.ALL}


@pytest.fixture(scope="module")
def ended(stage: Stage) -> Ended:
    return stage.run()


@pytest.mark.parametrize("name", CASES)
def test_a_misbehaving_defense(name: str, stage: Stage, ended: Ended, note: Note) -> None:
    case = CASES[name]
    assert ended.status == 1, ended.error
    records = [record for record in stage.records().values() if record.cell.defense["name"] == name]
    assert len(records) == 2
    for record in records:
        assert record.status == case.status, record.reason
        assert case.reason in (record.reason or "")
    sound = _sound(stage)
    lines = [line for line in stage.shorten(ended.out) if f": {name}:" in line]
    seen = [*lines[:1], f"status {case.status}, reason: {records[0].reason}"]
    if name == "out_of_memory":
        told = records[0].details["out_of_memory"]
        assert told["micro_batch"] < 9
        assert told["attempts"] == len(told["failures"]) + 1
        assert records[0].acc is not None
        seen = [f"status ok, details.out_of_memory: {told}"]
    assert "\x1b" not in "".join(seen)
    note(
        case.fault, case.how, stage, seen, GO_ON, injected=len(records), others=len(sound), sweep="misbehaving defenses"
    )  # fmt: skip


def _sound(stage: Stage) -> list[Record]:
    """The records of the defenses that do as they should, each with its figures."""
    names = [one if isinstance(one, str) else one["name"] for one in SOUND]
    records = [record for record in stage.records().values() if record.cell.defense["name"] in names]
    assert len(records) == 2 * len(SOUND)
    assert {record.status for record in records} == {"ok"}
    assert all(record.acc is not None for record in records)
    return records


def test_hostile_messages_are_text_in_the_report(stage: Stage, ended: Ended) -> None:
    page = (stage.out / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert not list(stage.root.rglob("here"))


def test_a_victim_whose_training_diverges(tmp_path: Path, note: Note) -> None:
    tree = tiny_sweep.tree(grid={"training.peak_lr": [1e38, 0.003], "defense": ["none", {"name": "fine_tuning"}]})
    tree["cell"]["poison_ratio"] = 0.1
    stage = Stage(tmp_path, tree)
    ended = stage.run()
    assert ended.status == 1
    failed = [record for record in stage.records().values() if record.status == "failed"]
    assert len(failed) == 2
    assert all("its victim could not be prepared: TrainingDiverged" in str(record.reason) for record in failed)
    seen = [line for line in stage.shorten(ended.out) if "failed: " in line][:1]
    note(
        "NaN loss in training", "A victim is trained at a rate at which the loss becomes NaN.", stage,
        [*seen, f"status failed, reason: {failed[0].reason}"], GO_ON, others=stage.union().statuses["ok"],
    )  # fmt: skip
