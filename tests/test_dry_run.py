"""What a dry run tells, and how an estimate follows from records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_sweep
import torch
from fake_cells import cell, record
from made_data import data
from torch import nn

from adapters import models
from bench import dry_run, estimate, spec, sweep
from bench.estimate import Pace
from bench.phases import Phase
from bench.preflight import Checked, Sizes, multiplications
from bench.records import Record, RecordStore, VictimFigures
from bench.spec import Resources
from bench.timing.scale import MADE_BY

CHECKED = Checked(
    {},
    {"digits": (3, 32, 32)},
    {("digits", "simplified_vgg"): 10.0, ("digits", "wide"): 40.0},
    {"digits": Sizes(900, 400, 10)},
)


def _record(name: str, /, seconds: float, victim: float | None = 27.0, rounds: int = 0, **changes: Any) -> Record:
    made = record(name, **changes)
    figures = VictimFigures(id=made.cell.victim_id, acc=0.9, asr=0.9, ra=0.1, seconds=victim)
    return made.model_copy(update={"seconds": seconds, "victim": figures, "rounds": ({},) * rounds})


def test_training_grows_with_network_epochs_and_copies() -> None:
    pace = Pace([_record("none", 0.0)], CHECKED)  # 900 images of weight 10, three epochs: 27,000 units in 27 s
    assert pace.victim(cell("none")) == pytest.approx(27)
    assert pace.victim(cell("none", model="wide", training={"epochs": 6})) == pytest.approx(27 * 4 * 2)
    two = ({"attack": "badnets", "target": 1}, {"attack": "blend", "target": 2})
    united = cell("none", attack=two, target=None, mix="united")
    assert pace.victim(united) == pytest.approx(54)
    checkpoint = {"checkpoint": "x", "trigger": "badnets", "target": 1, "digest": "1"}
    brought = cell("none", victim=checkpoint, attack=None, target=None, poison_ratio=None, training=None)
    assert pace.victim(brought) == 0
    for seconds in (None, 0.0):  # older records have the latter
        figures = VictimFigures(id=brought.victim_id, acc=0.9, asr=0.9, ra=0.1, seconds=seconds)
        seen = Record(id=brought.id, cell=brought, status="ok", victim=figures, seconds=1.0)
        assert Pace([seen], CHECKED).victim(cell("none")) is None


def test_multiplications_are_those_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        convolutions = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        return nn.Sequential(*convolutions, nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, num_classes))

    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    assert multiplications("tiny", data()) == 4 * 64 * 27 + 8 * 16 * 18 + 3 * 128


def test_a_defense_grows_with_its_images_and_scoring_with_its_rounds() -> None:
    records = [_record("ibau", 30.0, rounds=2), _record("dp_sgd", 90.0)]
    pace = Pace(records, CHECKED)
    scoring = 400 * 2 * 10 / 1000 / 3  # images, clean and triggered, units, units a second, the forward share
    assert pace.cell(cell("ibau")) == pytest.approx(30 + 3 * scoring)
    assert pace.cell(cell("ibau", clean_size=50)) == pytest.approx(30 + 3 * scoring)  # its steps do not grow with it
    assert pace.cell(cell("ibau", model="wide")) == pytest.approx(4 * (30 + 3 * scoring))
    assert pace.cell(cell("dp_sgd", clean_size=1)) == pytest.approx(90 + scoring)  # it works on the training data
    assert pace.cell(cell("nad")) is None
    found = pace.total([cell("ibau"), cell("nad")], [cell("none")])
    assert found == (pytest.approx(57 + 3 * scoring), 1)


@pytest.mark.parametrize(
    ("seen", "wanted", "times"),
    [
        ({"name": "fine_tuning"}, {"name": "fine_tuning", "epochs": 15}, 3),
        ({"name": "nad", "teacher_epochs": 10, "epochs": 10}, {"name": "nad"}, 2),
        ({"name": "fine_pruning"}, {"name": "fine_pruning", "epochs": 5}, 0.5),
        ({"name": "deep_inspect"}, {"name": "deep_inspect", "epochs": 4}, 0.1),
        ({"name": "dp_sgd", "epochs": 5}, {"name": "dp_sgd"}, 4),
        ({"name": "naive_uap"}, {"name": "naive_uap", "rounds": 1}, 0.2),
        ({"name": "ibau", "rounds": 2}, {"name": "ibau"}, 2),
        ({"name": "ibau", "recipe": "reference"}, {"name": "ibau", "recipe": "reference", "rounds": 100}, 100),
        (
            {"name": "tabor", "steps": 100, "batches_per_step": 4, "batch_size": 16},
            {"name": "tabor", "steps": 1000, "batches_per_step": 31, "batch_size": 32},
            10 * 31 / 4 * 2,
        ),
    ],
)
def test_a_defense_takes_as_long_as_its_settings_ask_for(
    seen: dict[str, Any], wanted: dict[str, Any], times: float
) -> None:
    """Records of other settings are a measure for these; those of another recipe count after them."""
    records = [_record("x", 30.0, None, defense=seen, clean_size=100)]
    if seen["name"] == "ibau":
        records += [_record("x", 7.0, None, defense={"name": "ibau", "recipe": "paper"}, clean_size=100)] * 5
    assert Pace(records, CHECKED).cell(cell("x", defense=wanted, clean_size=100)) == pytest.approx(30 * times)


def test_a_search_takes_longer_with_more_classes() -> None:
    checked = CHECKED._replace(
        sizes={**CHECKED.sizes, "gtsrb": Sizes(900, 400, 43)},
        weights={**CHECKED.weights, ("gtsrb", "simplified_vgg"): 10.0},
    )
    pace = Pace([_record(name, 30.0, None) for name in ("tabor", "fine_tuning")], checked)
    assert pace.cell(cell("tabor", dataset="gtsrb")) == pytest.approx(30 * 4.3)
    assert pace.cell(cell("fine_tuning", dataset="gtsrb")) == pytest.approx(30)


def test_a_defense_that_is_not_here_grows_with_the_clean_set() -> None:
    pace = Pace([_record("plugged_in", 30.0, None, clean_size=100)], CHECKED)
    assert pace.cell(cell("plugged_in", clean_size=300)) == pytest.approx(90)


def test_a_round_is_scored_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace([_record("ibau", 30.0, rounds=2)], CHECKED)
    monkeypatch.setattr(estimate, "TRACE_IMAGES", 100)
    assert pace.cell(cell("ibau")) == pytest.approx(30 + (400 + 2 * 100) * 2 * 10 / 1000 / 3)


def test_the_closest_record_counts() -> None:
    other = {"name": "ibau", "rounds": 9}
    records = [_record("ibau", 30.0), _record("ibau", 300.0, defense=other), _record("ibau", 2.0, clean_size=15)]
    pace = Pace(records, CHECKED)
    base = Pace([_record("none", 0.0)], CHECKED)
    assert base.cell(cell("ibau")) is None
    small, same, settings = (pace.cell(cell("ibau", **one)) for one in ({"clean_size": 15}, {}, {"defense": other}))
    assert small is not None
    assert same is not None
    assert settings is not None
    assert (small - 2, same - 30) == (pytest.approx(same - 30), pytest.approx(small - 2))
    assert settings == pytest.approx(same + 270)


def test_nothing_known_is_said_to_be_so() -> None:
    assert Pace([], CHECKED).total([cell("ibau")], [cell("none")]) == (0, 2)
    assert Pace([_record("ibau", 30.0, dataset="elsewhere")], CHECKED).total([cell("ibau")], []) == (0, 1)


def test_records_of_every_folder_are_found_and_unreadable_ones_passed_over(tmp_path: Path) -> None:
    RecordStore(tmp_path / "one").append(record("none"))
    RecordStore(tmp_path / "two").append(record("ibau"))
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "records.jsonl").write_text('{"schema": 99}\n')
    assert {one.id for one in estimate.earlier([tmp_path])} == {record("none").id, record("ibau").id}


def test_records_are_those_of_the_kind_of_device_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell recorded on both is found on either; a record that tells of no device counts as both."""
    monkeypatch.setattr(dry_run, "COMMITTED", tmp_path)
    options = sweep.parse(["x.yaml", "--out", str(tmp_path / "none")])
    made = {"cpu": MADE_BY.model_copy(update={"device": "AMD EPYC (2 CPUs)"}), "gpu": MADE_BY}
    assert dry_run._earlier(options, True) == ([], " on a GPU")
    RecordStore(tmp_path / "b").append(record("ibau").model_copy(update={"provenance": made["cpu"]}))
    assert dry_run._earlier(options, True)[1] == " on CPUs, since none is on a GPU"
    RecordStore(tmp_path / "a").append(record("ibau").model_copy(update={"provenance": made["gpu"]}))
    RecordStore(tmp_path / "a").append(record("none"))
    for gpu, kind, told in ((True, "gpu", " on a GPU"), (False, "cpu", " on a CPU")):
        found, origin = dry_run._earlier(options, gpu)
        assert origin == told
        assert {one.cell.defense["name"]: one.provenance for one in found} == {"ibau": made[kind], "none": None}
    assert len(dry_run._earlier(options, None)[0]) == 2


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_sweep.write_images(tmp_path / "data")
    tiny_sweep.write(tmp_path, tiny_sweep.tree(name="one"), "one.yaml")
    grid = {"poison_ratio": [0.3, 0.5], "defense": ["none"]}
    tiny_sweep.write(tmp_path, tiny_sweep.tree(name="two", grid=grid), "two.yaml")
    tiny_sweep.write(tmp_path, {"name": "all", "include": ["one.yaml", "two.yaml"]}, "all.yaml")
    monkeypatch.setattr(dry_run, "COMMITTED", tmp_path / "committed")
    return tmp_path


def _arguments(place: Path) -> list[str]:
    arguments = [str(place / "all.yaml"), "--data-root", str(place / "data"), "--out", str(place / "runs"), "--dry-run"]
    return [*arguments, "--cache", str(place / "cache"), "--max-concurrent", "1"]


def _dry_run(place: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    assert sweep.main([*_arguments(place), *more]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_lists_files_victims_and_cells(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _dry_run(place, capsys)
    assert lines[0] == "all: 10 combinations, 7 distinct cells"
    assert "  one: 6 cells on 2 victims, 0 of them in a file above, 6 more to compute" in lines
    assert "  two: 2 cells on 2 victims, 1 of them in a file above, 1 more to compute" in lines
    victims = [line for line in lines if line.startswith("  victim: ")]
    assert len(victims) == 3
    assert victims[0].endswith("badnets → 1, poison 0.1, seed 0 (to train): none, ibau × 2")
    assert lines[-2] == "dry run: 7 cells would be computed, 3 victims trained; nothing was"
    assert lines[-1] == "no estimate: no record of such cells under --out or in results/"
    assert not (place / "runs").exists()


def test_a_dry_run_tells_of_cells_that_run_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"poison_ratio": [0.3, 0.5], "defense": ["none"]}
    alone = {"cpu": 1, "gpu": 0, "alone": True}
    tiny_sweep.write(place, tiny_sweep.tree(name="two", grid=grid, resources=alone), "two.yaml")
    assert (
        "2 of them run after the others, each alone on a GPU, or without one on a machine"
        in _dry_run(place, capsys)[-2]
    )


def test_an_estimate_adds_what_runs_one_after_the_other() -> None:
    told = dry_run._estimate(
        [estimate.Estimate(60.0, 1), estimate.Estimate(30.0, 2)], [2, 1], "9 earlier records on a CPU"
    )
    assert told.startswith("estimate: 1:00 on 2 worker(s) and then 1 worker(s), from 9 earlier records")
    assert "; 3 jobs of a kind that no record tells of are left out" in told


@pytest.mark.parametrize(
    ("resources", "gpus", "workers"),
    [
        ({}, 1, 4),  # a quarter of a GPU each
        ({}, 0, 16),
        ({"cpu": 2, "gpu": 0}, 1, 8),
        ({"cpu": 4, "gpu": 0.1}, 1, 4),
        ({"alone": True}, 0, 1),
        ({"alone": True}, 2, 2),
    ],
)
def test_an_estimate_counts_the_workers_that_the_engine_grants(
    resources: dict[str, Any], gpus: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the CPUs that this process may use, which are fewer than the machine's."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    stages = [Phase([], Resources(**resources), [])]
    for given, count in (([], workers), (["--max-concurrent", "1"], 1)):
        (grant,) = dry_run._grants(stages, sweep.parse(["x.yaml", *given]))
        assert grant.workers == count
        assert (grant.gpu > 0) == (gpus > 0 and resources.get("gpu", 1) > 0)
    assert dry_run._grants(stages, sweep.parse(["x.yaml", "--address", "host:6379"])) == []


def test_a_dry_run_refuses_what_this_machine_has_no_room_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([*_arguments(place), "--set", "resources.cpu=999"]) == 2
    assert "error: resources.cpu: found 999; expected at most " in capsys.readouterr().err


def test_a_dry_run_counts_the_clean_model_that_the_trigger_of_a_checkpoint_is_fitted_to(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.build(tiny_sweep.MODEL, tiny_sweep.CLASSES, (3, 16, 16))
    torch.save(model.state_dict(), place / "mine.pth")
    victim = {"checkpoint": "mine.pth", "trigger": "l2_inv", "target": 1}
    shared = {"dataset": tiny_sweep.DATASET, "model": tiny_sweep.MODEL, "victim": victim, "clean_size": 9}
    tiny_sweep.write(place, {"name": "all", "cell": shared, "grid": {"defense": ["none", "fine_tuning"]}}, "all.yaml")
    lines = _dry_run(place, capsys)
    assert lines[1].endswith("simplified_vgg, clean, seed 0 (to train): a trigger is fitted to it")
    assert lines[2].endswith("mine.pth, seed 0 (at hand): none, fine_tuning")
    assert lines[3] == "dry run: 2 cells would be computed, 1 victims trained; nothing was"
    _keep_a_record(place)
    assert _dry_run(place, capsys)[3:4] == lines[3:4]


def test_a_dry_run_tells_apart_victims_of_one_description(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"attack": ["none", "badnets"], "training.epochs": [1, 2], "clean_label": [None, True], "defense": ["none"]}
    tree = tiny_sweep.tree(name="all", grid=grid)
    for key in ("attack", "clean_size"):
        del tree["cell"][key]
    tree["cell"] |= {"poison_ratio": 0.3, "training": {"batch_size": 32}}
    tiny_sweep.write(place, tree, "all.yaml")
    told = [line.partition(", seed 0")[2] for line in _dry_run(place, capsys) if line.startswith("  victim: ")]
    assert told == [
        ", training.epochs 1 (to train): none",
        ", training.epochs 2 (to train): none",
        ", training.epochs 1 (to train): none",
        ", clean_label True, training.epochs 1 (to train): none",
        ", training.epochs 2 (to train): none",
        ", clean_label True, training.epochs 2 (to train): none",
    ]


def _keep_a_record(place: Path) -> None:
    """Of a victim that took a minute to train."""
    done = spec.load(place / "one.yaml", (), place / "data").cells[0]
    figures = VictimFigures(id=done.victim_id, acc=0.9, asr=0.9, ra=0.1, seconds=60.0)
    store = RecordStore(place / "runs" / "earlier")
    store.append(Record(id=done.id, cell=done, status="ok", victim=figures, seconds=1.0))


def test_a_dry_run_estimates_from_records(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _keep_a_record(place)
    lines = _dry_run(place, capsys)
    assert lines[-1].startswith("estimate: 3:"), lines[-1]  # three victims at 60 s, and a little scoring
    assert "on 1 worker(s), from 1 earlier records" in lines[-1]
    assert lines[-1].endswith("; 4 jobs of a kind that no record tells of are left out")
    joined = _dry_run(place, capsys, "--address", "host:6379")[-1]
    assert "on one worker (how many the cluster has is not known before it is joined), from 1 earlier" in joined


def test_of_several_records_the_median_counts() -> None:
    records = [_record("ibau", seconds, seed=seed) for seed, seconds in enumerate((10.0, 30.0, 500.0))]
    assert Pace(records, CHECKED).cell(cell("ibau")) == Pace(records[1:2], CHECKED).cell(cell("ibau"))
