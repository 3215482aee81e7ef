"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from torch import nn

from bench.scoring import Outcomes, Scorer

settings.register_profile("no_clock", deadline=None)  # no test measures time, nor fails for want of it
settings.register_profile(
    "faults", max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)  # what ``tox -e faults`` asks for
settings.load_profile("no_clock")

REALDATA = "IBAU_BENCH_REALDATA"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder that holds ``gtsrb/``, ``cifar10_jpeg/`` and ``ibau_authors/``; skips with the reason without it."""
    folder = os.environ.get(REALDATA)
    if not folder:
        pytest.skip(f"{REALDATA} is not set: no real data to test on")
    missing = [name for name in ("gtsrb", "cifar10_jpeg", "ibau_authors") if not (Path(folder) / name).is_dir()]
    if missing:
        pytest.skip(f"{REALDATA}={folder} lacks {', '.join(missing)}")
    return Path(folder)


@pytest.fixture(scope="session")
def realdata_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all tests on real data, so that each data set is decoded once."""
    return tmp_path_factory.mktemp("realdata_cache")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The test images that a model was scored on, in order."""
    seen: list[int] = []
    original = Scorer.outcomes

    def watched(self: Scorer, model: nn.Module) -> Outcomes:
        seen.extend(self.index.tolist())
        return original(self, model)

    monkeypatch.setattr(Scorer, "outcomes", watched)
    return seen
