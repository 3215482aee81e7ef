"""Options of the suite, what its files share, and that only timings of the same hardware are compared."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.errors import UserError
from bench.files import check_writable
from bench.memory import keep_freed_pages
from bench.provenance import commit
from bench.run_cell import CellRunner
from bench.timing import floors, hardware
from bench.timing.scale import SCALES, Scale, name, one_a_dataset

_LEFT_OUT = ("node", "release")
"""Of what pytest-benchmark tells of a machine: its name in somebody's network, and its kernel's."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("timing suite")
    group.addoption("--bench-scale", choices=list(SCALES), default="small", help="how much is measured")
    group.addoption("--bench-set", action="append", default=[], help="as --set of a sweep: cell.dataset=cifar10_jpeg")
    group.addoption("--bench-data-root", type=Path, default=Path("data"), help="where the data sets lie")
    group.addoption("--bench-cache", type=Path, help="decoded data and victims (default: a folder of this run's own)")
    group.addoption("--bench-threads", type=int, default=1, help="torch's threads (default: 1, as a cell has)")


def pytest_configure(config: pytest.Config) -> None:
    """The folder of ``--benchmark-json`` is there and can be written to: the file itself is opened at the very end."""
    path = config.getoption("benchmark_json", None)
    try:
        if path is not None:  # before pytest-benchmark 5.3 a file that is open already
            path = path if isinstance(path, Path) else Path(path.name)
            check_writable(path.absolute().parent, "--benchmark-json")
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``cell``: each cell whose defense is timed; ``base``: one a data set, for everything else."""
    wanted = [name for name in ("cell", "base") if name in metafunc.fixturenames]
    if wanted:
        config = metafunc.config
        scale = SCALES[config.getoption("bench_scale")]
        try:
            cells = scale.cells(config.getoption("bench_data_root"), config.getoption("bench_set"))
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        chosen = cells if wanted == ["cell"] else one_a_dataset(cells)
        metafunc.parametrize(wanted[0], chosen, ids=name if wanted == ["cell"] else lambda cell: str(cell.dataset))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return _device()


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> Scale:
    return SCALES[pytestconfig.getoption("bench_scale")]


@pytest.fixture(scope="session")
def runner(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> CellRunner:
    """What runs cells in a sweep, set up as a worker is."""
    torch.set_num_threads(pytestconfig.getoption("bench_threads"))
    keep_freed_pages()
    cache = pytestconfig.getoption("bench_cache") or tmp_path_factory.mktemp("timing")
    made = CellRunner(pytestconfig.getoption("bench_data_root"), cache, device, commit())
    gc.freeze()
    return made


@pytest.fixture(scope="session")
def ceilings(runner: CellRunner, device: torch.device) -> floors.Ceilings:
    """What the device can do, measured once."""
    return floors.ceilings(device)


@pytest.fixture
def facts(runner: CellRunner, device: torch.device) -> dict[str, Any]:
    """Device, versions, threads and load, as every timing carries them."""
    return hardware.facts(device)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    for key in _LEFT_OUT:
        machine_info.pop(key, None)
    torch.set_num_threads(config.getoption("bench_threads"))
    found = hardware.facts(_device())
    machine_info |= {key: found[key] for key in hardware.SAME}


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """The commit is this package's, whatever folder pytest was started in."""
    commit_info.clear()
    commit_info |= {"id": commit().id, "dirty": commit().dirty}


def pytest_benchmark_compare_machine_info(
    config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Called before anything runs."""
    where = f"the file of {compared_benchmark.get('datetime', 'unknown time')}"
    try:
        hardware.check_same(machine_info, compared_benchmark.get("machine_info", {}), where)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
