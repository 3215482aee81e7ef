"""What the queue keeps of its jobs is what a plain account of them says, and costs the same however many there are."""

from __future__ import annotations

import math
import pickle
import sys
from collections import defaultdict
from types import FrameType
from typing import Any

from fake_cells import cell
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.company import Company
from bench.durations import Durations, Family
from bench.jobs import JobQueue

SECONDS = st.floats(0, 1e9, allow_nan=False)
FAMILIES = [Family(kind, name) for kind in ("victim", "cell", "control") for name in "abc"]


class PlainCompany:
    """The definition: whenever one starts, everyone that runs in its place has all others there beside it."""

    def __init__(self) -> None:
        self.running: dict[str, str] = {}
        self.beside: dict[str, int] = {}

    def started(self, key: str, place: str) -> None:
        self.running[key] = place
        there = [one for one, where in self.running.items() if where == place]
        for one in there:
            self.beside[one] = max(self.beside.get(one, 0), len(there) - 1)

    def ended(self, key: str) -> None:
        self.running.pop(key, None)

    def most(self, key: str) -> int:
        return self.beside.get(key, 0)


class PlainDurations:
    """The definition: all that was ever added, summed anew for each mean."""

    def __init__(self) -> None:
        self.seconds: dict[Family, list[float]] = defaultdict(list)
        self.all: dict[str, list[float]] = defaultdict(list)

    def add(self, family: Family, seconds: float) -> None:
        self.seconds[family].append(seconds)
        self.all[family.kind].append(seconds)

    def mean(self, family: Family) -> float | None:
        others = self.all.get("cell") if family.kind == "control" else None
        values = self.seconds.get(family) or self.all.get(family.kind) or others
        return math.fsum(values) / len(values) if values else None


KEYS = "abcdefgh"
PLACES = {key: str(number % 3) for number, key in enumerate(KEYS)}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["started", "ended"]), st.sampled_from(KEYS)), max_size=60))
def test_company_is_what_its_definition_says_at_every_moment(events: list[tuple[str, str]]) -> None:
    """Keys that start twice, end without a start, or come back are among the events."""
    company, plain = Company(), PlainCompany()
    for event, key in events:
        place = [PLACES[key]] if event == "started" else []
        getattr(company, event)(key, *place)
        getattr(plain, event)(key, *place)
        assert [company.most(one) for one in KEYS] == [plain.most(one) for one in KEYS]


def test_one_that_starts_again_elsewhere_has_the_company_of_its_new_place() -> None:
    company = Company()
    for key, place in (("a", "here"), ("b", "here"), ("a", "there")):
        company.started(key, place)
    company.started("c", "here")
    company.ended("a")
    assert [company.most(key) for key in "abc"] == [0, 1, 1]


def test_company_keeps_no_more_starts_than_run_at_once() -> None:
    company = Company()
    for number in range(5000):
        company.started(str(number))
        if number >= 20:
            company.ended(str(number - 20))
    (place,) = company._places.values()
    assert len(place._levels) == len(place._starts) <= 21


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FAMILIES), SECONDS), max_size=40))
def test_a_mean_is_that_of_the_whole_history_to_the_last_bit(added: list[tuple[Family, float]]) -> None:
    durations, plain = Durations(), PlainDurations()
    for family, seconds in added:
        durations.add(family, seconds)
        plain.add(family, seconds)
        assert [durations.mean(one) for one in FAMILIES] == [plain.mean(one) for one in FAMILIES]
    assert [durations.seen(one) for one in FAMILIES] == [one in plain.seconds for one in FAMILIES]


def test_no_history_is_kept() -> None:
    durations = Durations()
    sizes = []
    for number in range(20_000):
        durations.add(FAMILIES[0], 0.1 + 1e-3 * (number % 7))
        if number in (99, 19_999):
            sizes.append(len(pickle.dumps(durations)))
    assert sizes[1] < sizes[0] + 50


def test_a_job_costs_the_same_however_many_run_and_ran() -> None:
    """Counted in lines of Python executed, on average over jobs handed out, started and finished."""
    lines = {running: _lines_a_job(running, jobs=400) for running in (5, 500)}
    assert lines[500] < 1.2 * lines[5]


def _lines_a_job(running: int, jobs: int) -> float:
    """``running`` jobs at once, and as many done already; then ``jobs`` times one ends and the next starts."""
    queue = JobQueue([cell("ibau", seed=seed) for seed in range(2 * running + jobs)], lambda one: True, {})
    at_work = []

    def turn(*, ends: bool) -> None:
        job = queue.next()
        assert job is not None
        queue.started(job)
        at_work.append(job)
        if ends:
            queue.finish(at_work.pop(0), 1.0)

    for number in range(2 * running):
        turn(ends=number >= running)
    assert len(queue.running) == running
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for _ in range(jobs):
            turn(ends=True)
    finally:
        sys.settrace(before)
    return count / jobs
