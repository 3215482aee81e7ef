"""Two gloo processes give what one process gives, for every derivative and every kind of recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_cases import CASES, TIMEOUT

from ibau_defense import IBAU
from ibau_defense.parallel import ranks_from, share_of

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(size: int, folder: Path) -> list[dict[str, Any]]:
    """What every one of ``size`` fresh processes saved."""
    out = folder / "results"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, rank_cases.__file__, str(rank), str(size), str(folder / "rendezvous"), str(out)],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * size, "\n".join(errors)
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", list(CASES))
def test_two_ranks_give_the_single_process_result(name: str, two_ranks: list[dict[str, Any]]) -> None:
    alone = CASES[name](None)
    first, second = (rank["cases"][name] for rank in two_ranks)
    assert list(first) == list(alone)
    # Sums over the images are taken in another order; nothing else differs.
    tolerance = 1e-9 if name.endswith("float64") else 1e-6
    for key, expected in alone.items():
        scale = max(1.0, float(expected.abs().max()))
        assert float((first[key] - expected).abs().max()) <= tolerance * scale, key
        assert torch.equal(first[key], second[key]), f"{key}: the ranks have drifted apart"


def test_ranks_with_other_images_are_refused_on_every_rank(two_ranks: list[dict[str, Any]]) -> None:
    for rank in two_ranks:
        assert rank["refusal"].startswith("images, labels: found different ones on the 2 ranks")


def test_one_rank_out_of_time_stops_all(two_ranks: list[dict[str, Any]]) -> None:
    assert [rank["timeout"] for rank in two_ranks] == ["timeout", "timeout"]


@given(count=st.integers(0, 1000), size=st.integers(1, 17))
def test_shares_cut_everything_into_parts_that_differ_by_one_at_most(count: int, size: int) -> None:
    parts = [list(range(count))[share_of(count, rank, size)] for rank in range(size)]
    assert [index for part in parts for index in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_group_without_torch_distributed_is_refused() -> None:
    images, labels = rank_cases.clean_set(10, torch.float32)
    with pytest.raises(ValueError, match=r"group: found 'world'.*init_process_group"):
        IBAU(recipe="paper", group="world").unlearn(rank_cases.tiny(torch.float32), images, labels)
    assert ranks_from(None) is None
