"""The queue: victims first, the costly before the cheap; each job once; no cell before its victim."""

from __future__ import annotations

from fake_cells import cell
from hypothesis import given
from hypothesis import strategies as st

from bench.cells import Cell
from bench.jobs import Job, JobQueue

RATIOS = (0.1, 0.2, 0.3)


def _cells() -> list[Cell]:
    names = ("none", "fine_tuning", "ibau")
    return [cell(name, poison_ratio=ratio, clean_size=n) for ratio in RATIOS for name in names for n in (50, 150)]


def _victim(ratio: float) -> str:
    return cell(poison_ratio=ratio).victim_id


def test_victims_come_first_and_the_costly_one_before_the_others() -> None:
    costs = {_victim(ratio): ratio for ratio in RATIOS}
    queue = JobQueue(_cells(), lambda one: False, costs)
    jobs = [queue.next() for _ in range(4)]
    assert [job.cell.poison_ratio for job in jobs if job] == [0.3, 0.2, 0.1]
    assert jobs[3] is None
    assert not queue.finished()


def test_cells_are_released_by_their_victim_and_not_before() -> None:
    queue = JobQueue(_cells(), lambda one: False, {})
    first, second = queue.next(), queue.next()
    assert first is not None
    assert second is not None
    queue.finish(first, 3.0)
    third = queue.next()
    assert third is not None
    assert third.kind == "victim"  # victims still go first
    released = [queue.next() for _ in range(7)]
    assert {job.victim for job in released if job} == {first.victim}
    assert sum(job is None for job in released) == 1


def test_victims_that_are_there_are_not_prepared() -> None:
    queue = JobQueue(_cells(), lambda one: True, {})
    assert queue.victims_left == 0
    job = queue.next()
    assert job is not None
    assert job.kind == "cell"


def test_victims_of_cells_that_run_later_are_prepared_too() -> None:
    own, later = cell("none", poison_ratio=0.1), [cell("none", poison_ratio=ratio) for ratio in (0.1, 0.2, 0.3)]
    queue = JobQueue([own], lambda one: one.poison_ratio == 0.3, {}, ahead=later)
    assert (queue.cells_left, queue.victims_left) == (1, 2)
    kinds = []
    while (job := queue.next()) is not None:
        assert not queue.finished()
        queue.started(job)
        kinds.append((job.kind, job.cell.poison_ratio))
        if job.cell.poison_ratio == 0.2:
            assert queue.fail_victim(job) == []
        else:
            queue.finish(job, 1.0)
    assert kinds == [("victim", 0.1), ("victim", 0.2), ("cell", 0.1)]
    assert queue.finished()
    assert JobQueue([], lambda one: True, {}, ahead=later).finished()


def test_a_failed_victim_takes_its_cells_with_it() -> None:
    queue = JobQueue(_cells(), lambda one: False, {})
    job = queue.next()
    assert job is not None
    queue.started(job)
    assert len(queue.fail_victim(job)) == 6
    assert (queue.cells_left, queue.victims_left, queue.running) == (12, 2, {})


def test_the_longest_family_goes_first_and_an_unknown_one_before_it() -> None:
    queue = JobQueue(_cells(), lambda one: True, {})
    order: list[str] = []
    seconds = {"none": 0.1, "fine_tuning": 1.0, "ibau": 9.0}
    while (job := queue.next()) is not None:
        name = str(job.cell.defense["name"])
        queue.started(job)
        queue.finish(job, seconds[name] * (job.cell.clean_size or 0))
        order.append(f"{name} {job.cell.clean_size}")
    assert len(set(order[:6])) == 6
    assert order[6:] == [f"{name} {n}" for name in ("ibau", "fine_tuning", "none") for n in (150, 50) for _ in "12"]
    assert queue.finished()


def test_the_time_left_is_known_once_each_kind_was_seen() -> None:
    queue = JobQueue([cell("ibau", seed=seed) for seed in (0, 1)], lambda one: False, {})
    assert queue.seconds_left(1) is None
    for seconds in (10.0, 10.0):
        job = queue.next()
        assert job is not None
        queue.started(job)
        queue.finish(job, seconds)
    assert queue.seconds_left(1) is None  # no cell was seen yet
    job = queue.next()
    assert job is not None
    queue.finish(job, 4.0)
    assert queue.seconds_left(1) == 4.0
    assert queue.seconds_left(2) == 2.0


def test_cells_without_a_defense_say_nothing_of_the_time_that_others_take() -> None:
    names = ("none", "none", "ibau", "nad")
    cells = [cell(name, clean_size=number + 1) for number, name in enumerate(names)]
    queue = JobQueue(cells, lambda one: True, {})
    jobs = [queue.next() for _ in cells]
    for job, seconds, left in zip(jobs, (0.1, 0.3, 90.0, 30.0), (None, None, 90.0, 0.0), strict=True):
        assert job is not None
        queue.finish(job, seconds)
        assert queue.seconds_left(1) == left


def test_cells_without_a_defense_count_like_others_while_none_of_them_is_done() -> None:
    queue = JobQueue([cell("ibau"), *(cell("none", clean_size=n) for n in (50, 150))], lambda one: True, {})
    for seconds, left in ((8.0, 16.0), (0.5, 0.5)):
        job = queue.next()
        assert job is not None
        queue.finish(job, seconds)
        assert queue.seconds_left(1) == left


@given(st.randoms(use_true_random=False), st.integers(1, 5), st.sets(st.sampled_from(RATIOS)))
def test_every_job_is_handed_out_once_whatever_the_order_of_events(
    random: object, workers: int, ready: set[float]
) -> None:
    queue = JobQueue(_cells(), lambda one: one.poison_ratio in ready, {})
    running: list[Job] = []
    done: list[str] = []
    prepared = {_victim(ratio) for ratio in ready}
    while not queue.finished():
        while len(running) < workers and (job := queue.next()) is not None:
            assert job.kind == "victim" or job.victim in prepared
            queue.started(job)
            running.append(job)
        assert running
        job = running.pop(random.randrange(len(running)))  # type: ignore[attr-defined]
        if job.kind == "victim":
            prepared.add(job.victim)
        queue.finish(job, 1.0)
        done.append(job.key)
    assert len(done) == len(set(done)) == 18 + 3 - len(ready)
    assert queue.next() is None
    assert max(queue.company.most(key) for key in done) <= workers - 1


def _clean(one: Cell) -> Cell | None:
    """Victims of two of the three ratios wait for a clean model."""
    if one.poison_ratio == RATIOS[0]:
        return None
    return Cell(dataset="digits", model="simplified_vgg", training=one.training, defense={"name": "none"})


def test_a_clean_model_goes_first_and_releases_the_victims_that_wait_for_it() -> None:
    costs = {_victim(ratio): ratio for ratio in RATIOS}
    queue = JobQueue(_cells(), lambda one: False, costs, _clean)
    assert (queue.victims_left, queue.cells_left) == (4, 18)
    clean, free = queue.next(), queue.next()
    assert clean is not None
    assert clean.cell.is_clean
    assert free is not None
    assert free.cell.poison_ratio == RATIOS[0]
    assert queue.next() is None, "the others wait"
    queue.finish(clean, 5.0)
    assert [job.cell.poison_ratio for job in (queue.next(), queue.next()) if job] == [0.3, 0.2]
    assert queue.victims_left == 3


def test_a_clean_model_that_fails_takes_along_what_waits_for_it() -> None:
    queue = JobQueue(_cells(), lambda one: False, {}, _clean)
    clean = queue.next()
    assert clean is not None
    assert {job.cell.poison_ratio for job in queue.fail_victim(clean)} == set(RATIOS[1:])
    assert (queue.victims_left, queue.cells_left) == (1, 6)
    victim = queue.next()
    assert victim is not None
    queue.finish(victim, 1.0)
    while (job := queue.next()) is not None:
        queue.finish(job, 1.0)
    assert queue.finished()


def test_cells_of_a_victim_that_is_there_wait_for_the_clean_model_of_its_trigger() -> None:
    queue = JobQueue(_cells(), lambda one: True, {}, _clean, ahead=[cell("none", poison_ratio=0.2, seed=1)])
    assert (queue.victims_left, queue.cells_left) == (1, 18)
    clean = queue.next()
    assert clean is not None
    assert clean.cell.is_clean
    free = [queue.next() for _ in range(7)]
    assert {job.cell.poison_ratio for job in free if job} == {RATIOS[0]}
    assert free[-1] is None, "the others wait"
    queue.finish(clean, 5.0)
    assert (queue.victims_left, queue.cells_left) == (0, 18)
    jobs = [job for job in [*free, *(queue.next() for _ in range(12))] if job]
    assert {(job.kind, job.cell.poison_ratio) for job in jobs} == {("cell", ratio) for ratio in RATIOS}
    for job in jobs:
        queue.finish(job, 1.0)
    assert queue.finished()
    assert queue.seconds_left(1) == 0.0


def test_a_clean_model_that_fails_takes_along_cells_of_victims_that_are_there() -> None:
    queue = JobQueue(_cells(), lambda one: True, {}, _clean)
    clean = queue.next()
    assert clean is not None
    assert {job.cell.poison_ratio for job in queue.fail_victim(clean)} == set(RATIOS[1:])
    assert (queue.victims_left, queue.cells_left) == (0, 6)
    while (job := queue.next()) is not None:
        queue.finish(job, 1.0)
    assert queue.finished()


def test_a_clean_model_with_cells_of_its_own_is_trained_once() -> None:
    clean = cell("none", attack=None, target=None, poison_ratio=None)
    attacked = cell("none", poison_ratio=0.1)
    for cells in ([clean, attacked], [attacked, clean]):
        queue = JobQueue(cells, lambda one: False, {}, lambda one: None if one.is_clean else clean)
        assert queue.victims_left == 2
        first = queue.next()
        assert first is not None
        assert (first.kind, first.victim) == ("victim", clean.victim_id)
        assert queue.next() is None
        queue.finish(first, 1.0)
        jobs = [queue.next(), queue.next()]
        assert [(job.kind, job.victim) for job in jobs if job] == [
            ("victim", attacked.victim_id),
            ("cell", clean.victim_id),
        ]
        for job in jobs:
            assert job is not None
            queue.finish(job, 1.0)
        last = queue.next()
        assert last is not None
        queue.finish(last, 1.0)
        assert queue.finished()
        assert queue.victims_left == 0


def test_what_an_earlier_run_took_orders_the_rest_of_it_and_tells_the_time_left() -> None:
    names = ("none", "fine_tuning", "ibau")
    cells = [cell(name, poison_ratio=ratio) for ratio in RATIOS for name in names]
    queue = JobQueue(cells[3:], lambda one: True, {})
    assert queue.seconds_left(2) is None
    queue.recall(zip(cells[:3], (0.0, 30.0, 20.0), strict=True))
    assert queue.seconds_left(2) == 2 * (0.0 + 30.0 + 20.0) / 2
    jobs = [queue.next() for _ in range(6)]
    assert [job.cell.defense["name"] for job in jobs if job] == [*["fine_tuning"] * 2, *["ibau"] * 2, *["none"] * 2]


def test_a_running_job_counts_as_half_done() -> None:
    queue = JobQueue([cell("ibau", seed=seed) for seed in range(3)], lambda one: True, {})
    first, second = queue.next(), queue.next()
    assert first is not None
    assert second is not None
    queue.started(first)
    queue.finish(first, 8.0)
    assert queue.seconds_left(1) == 16.0
    queue.started(second)
    assert queue.seconds_left(1) == 12.0


def test_a_job_whose_worker_was_lost_runs_no_longer() -> None:
    queue = JobQueue([cell("ibau", seed=seed) for seed in range(3)], lambda one: True, {})
    lost, other, third = (queue.next() for _ in range(3))
    assert lost is not None
    assert other is not None
    assert third is not None
    queue.started(lost)
    queue.started(other)
    queue.again(lost)
    assert list(queue.running.values()) == [other]
    assert queue.next() is lost
    queue.started(third)
    assert queue.company.most(third.key) == 1  # beside the other one


def test_victims_that_all_failed_leave_the_time_left_known() -> None:
    queue = JobQueue(_cells(), lambda one: one.poison_ratio != RATIOS[0], {})
    victim = queue.next()
    assert victim is not None
    assert victim.kind == "victim"
    queue.fail_victim(victim)
    while (job := queue.next()) is not None:
        queue.finish(job, 1.0)
    assert queue.seconds_left(1) == 0.0


def test_a_job_whose_seconds_say_nothing_leaves_the_mean_as_it_is() -> None:
    queue = JobQueue([cell("ibau", seed=seed) for seed in range(3)], lambda one: True, {})
    for seconds, left in ((None, None), (8.0, 8.0), (None, 0.0)):
        job = queue.next()
        assert job is not None
        queue.finish(job, seconds)
        assert queue.seconds_left(1) == left
    assert queue.finished()
