"""The fault suite, ``tox -e faults``: each fault is really injected, and what became of it is a line of JSON."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from stage import HERE, ROOT, Stage, Union

from bench.provenance import commit, device_name
from bench.report.faults import FaultRecord, forget, put


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, default=ROOT / "results" / "faults", help="the folder of faults.jsonl")
    parser.addoption("--kills", type=int, default=50, help="how many processes of sweeps to kill, in all")
    parser.addoption("--fault-seed", type=int, default=0, help="of the moments of the kills")


Note = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def _anew(request: pytest.FixtureRequest) -> None:
    """A run of the whole suite starts without records; one of a part without those of its tests."""
    commit()  # kept from now on: the outcomes that a checkout holds change below, which is no change of the code
    forget(request.config.getoption("--outcomes"), None if _is_whole(request.config) else _names(request.session))


def _is_whole(config: pytest.Config) -> bool:
    chosen = config.getoption("keyword") or config.getoption("markexpr") or config.getoption("deselect")
    return not chosen and HERE in {Path(one).resolve() for one in config.args}


def _names(session: pytest.Session) -> set[str]:
    return {item.nodeid for item in session.items}


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Writes the record of a fault; nothing may be lost, and nothing doubled."""

    def write(
        fault: str, how: str, stage: Stage, seen: Sequence[str], after: str, *, injected: int = 1, others: int = 0,
        union: Union | None = None, sweep: str | None = None,
    ) -> None:  # fmt: skip
        union, source = union or stage.union(), commit()
        record = FaultRecord(
            test=request.node.nodeid, fault=fault, how=how, injected=injected, expected=union.expected,
            lost=union.lost, doubled=union.doubled,
            others=others, seen=tuple(seen), after=after, commit=source.id, dirty=source.dirty,
            hardware=device_name(torch.device("cpu")), torch=str(torch.__version__), sweep=sweep,
        )  # fmt: skip
        put(request.config.getoption("--outcomes"), record)
        assert (union.lost, union.doubled) == (0, 0)

    return write


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"{request.config.getoption('--fault-seed')} {request.node.name}")
