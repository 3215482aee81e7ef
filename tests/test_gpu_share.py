"""``resources: {gpu: auto}``: the arithmetic, and what is done where no record or no GPU tells anything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_sweep
import torch
from fake_cells import cell, record

from adapters.errors import UserError
from bench import cluster, gpu_share, includes, spec, sweep
from bench.cluster import _grant
from bench.gpu_share import BESIDES_BYTES, memory_here, of_a_gpu, resolved
from bench.provenance import Commit, device_name, is_gpu, provenance
from bench.records import Record, RecordStore
from bench.spec import Resources

GIB = 2**30
AUTO = Resources(gpu="auto")
MEMORY = 80 * GIB
GPU = "NVIDIA H100 80GB HBM3"


def _record(peak: int | None, device: str = GPU, **changes: Any) -> Record:
    source = provenance(torch.device("cpu"), Commit(None, None)).model_copy(update={"device": device})
    return record("ibau", **changes).model_copy(update={"peak_memory_bytes": peak, "provenance": source})


@pytest.mark.parametrize(
    ("peak", "k"),
    [
        (8 * GIB - BESIDES_BYTES, 10),
        (8 * GIB - BESIDES_BYTES + 1, 9),
        (40 * GIB - BESIDES_BYTES, 2),
        (41 * GIB, 1),
        (200 * GIB, 1),
    ],
)
def test_the_share_is_rounded_up_to_one_of_k(peak: int, k: int) -> None:
    assert of_a_gpu(peak, MEMORY) == 1 / k
    assert k == 1 or k * (peak + BESIDES_BYTES) <= MEMORY < (k + 1) * (peak + BESIDES_BYTES)
    assert _grant(Resources(gpu=1 / k), [256.0], [1.0], None).workers == k


def test_the_largest_peak_of_the_same_data_set_and_model_on_a_gpu_counts() -> None:
    records = [
        _record(3 * GIB), _record(6 * GIB, seed=1), _record(None, seed=2),
        _record(30 * GIB, dataset="gtsrb"), _record(30 * GIB, model="other"),
        _record(30 * GIB, device_name(torch.device("cpu"))),
    ]  # fmt: skip
    found, line = resolved(AUTO, [cell()], [lambda: records], MEMORY)
    assert found.gpu == 1 / 10
    assert (
        line == "resources.gpu: auto is 0.1: 6.0 GiB at most in earlier records; 2.0 GiB besides; the GPU has 80.0 GiB"
    )


def test_the_sweeps_own_records_count_before_those_of_other_folders() -> None:
    own, others = [_record(6 * GIB)], [_record(30 * GIB)]
    assert resolved(AUTO, [cell()], [lambda: own, lambda: others], MEMORY)[0].gpu == 1 / 10
    assert resolved(AUTO, [cell()], [lambda: [], lambda: others], MEMORY)[0].gpu == 1 / 2


def test_cells_that_no_record_tells_of_have_a_quarter_at_least() -> None:
    found, line = resolved(AUTO, [cell(), cell(model="other")], [lambda: [_record(6 * GIB)]], MEMORY)
    assert found.gpu == 0.25
    assert "tell nothing of 1 of 2 pairs of data set and model: 0.25 at least" in line
    assert resolved(AUTO, [cell(), cell(model="other")], [lambda: [_record(50 * GIB)]], MEMORY)[0].gpu == 1


@pytest.mark.parametrize(
    ("records", "memory", "why"),
    [([], MEMORY, "no earlier record tells"), ([_record(6 * GIB)], None, "no GPU here whose memory would be known")],
)
def test_without_records_or_a_gpu_it_is_a_quarter_and_said(records: Any, memory: int | None, why: str) -> None:
    found, line = resolved(AUTO, [cell()], [lambda: records], memory)
    assert found.gpu == 0.25
    assert line.startswith(f"resources.gpu: auto is 0.25: {why}")


def test_a_number_stays_and_a_cell_alone_has_a_whole_gpu() -> None:
    for resources in (Resources(gpu=0.5), Resources(gpu="auto", alone=True)):
        assert resolved(resources, [cell()], [lambda: [_record(6 * GIB)]], MEMORY) == (resources, "")
    assert _grant(Resources(gpu="auto", alone=True), [8.0], [2.0], None).gpu == 1


def test_the_memory_is_that_of_the_smallest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [80 * GIB, 24 * GIB]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda one: SimpleNamespace(total_memory=sizes[one]))
    assert memory_here() == 24 * GIB
    sizes.clear()
    assert memory_here() is None


def test_a_processors_name_is_no_gpus() -> None:
    assert is_gpu(GPU)
    assert not is_gpu(device_name(torch.device("cpu")))


def test_the_command_asks_for_a_number_and_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Asked(Exception):  # noqa: N818 (the way out of the command)
        pass

    def start(resources: list[Resources], *_: Any) -> None:
        raise Asked([one.gpu for one in resources])

    monkeypatch.setattr(cluster, "ClusterStart", start)
    monkeypatch.setattr(cluster, "check_address", lambda address: None)
    monkeypatch.setattr(gpu_share, "memory_here", lambda: MEMORY)
    tiny_sweep.write_images(tmp_path / "data")
    path = tiny_sweep.write(tmp_path, tiny_sweep.tree(resources={"gpu": "auto"}))
    one = includes.load(path, (), tmp_path / "data").cells[0].model_copy(update={"seed": 9})
    known = _record(6 * GIB).model_copy(update={"id": one.id, "cell": one})
    RecordStore(tmp_path / "runs" / "tiny").append(known)
    command = [str(path), "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "runs"), "--address", "a:1"]
    with pytest.raises(Asked, match=r"^\[0\.1\]$"):
        sweep.main(command)
    assert "resources.gpu: auto is 0.1: 6.0 GiB at most" in capsys.readouterr().out
    assert sweep.main([*command, "--dry-run"]) == 0
    assert "resources.gpu: auto is 0.1: 6.0 GiB at most" in capsys.readouterr().out


def test_auto_is_a_value_of_a_sweep_file_and_other_words_are_not(tmp_path: Path) -> None:
    path = tiny_sweep.write(tmp_path, tiny_sweep.tree(resources={"cpu": 1, "gpu": "auto"}))
    assert includes.load(path, (), tmp_path).resources == AUTO
    with pytest.raises(UserError, match=r"^resources\.gpu: found 'most'; expected"):
        spec.load(path, ("resources.gpu=most",), tmp_path)
    with pytest.raises(UserError, match=r"^resources\.gpu: found -1; expected greater than or equal to 0"):
        spec.load(path, ("resources.gpu=-1",), tmp_path)


def test_the_largest_peak_counts_wherever_it_stands() -> None:
    for peaks in ((3, 6), (6, 3)):
        records = [_record(peak * GIB, seed=seed) for seed, peak in enumerate(peaks)]
        assert resolved(AUTO, [cell()], [lambda records=records: records], MEMORY)[0].gpu == 1 / 10  # type: ignore[misc]
    kinds = [_record(6 * GIB, model="other"), _record(1 * GIB)]
    assert resolved(AUTO, [cell(), cell(model="other")], [lambda: kinds], MEMORY)[0].gpu == 1 / 10
