"""What simulations of the driver found (``python -m bench.timing.driver``), and how a document shows it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError

from adapters.errors import UserError
from bench.cells import Frozen
from bench.records import Origin
from bench.report import names
from bench.report.markdown import escape

SCHEMA = 1
NONE = "*No simulation is committed for this table yet.*"
LENGTHS = (1, 10, 60)
"""Mean seconds of a job for which the table says how many workers the driver keeps up with."""


class DriverRun(Frozen):
    """One simulated sweep. Of the workers, seconds on the simulated clock: ``work`` inside jobs, ``makespan``.

    Of the driver, real seconds: ``pick`` the next job, ``start`` it, ``report`` what came of it without the store,
    ``store`` its record; ``first`` and ``last``: of one job, on average over the first and the last tenth of them.
    ``lost`` cells have no line in the store at the end, ``doubled`` ones more than one.
    """

    workers: int = Field(ge=1)
    cells: int = Field(ge=1)
    victims: int = Field(ge=0)
    work: float = Field(gt=0)
    makespan: float = Field(gt=0)
    pick: float = Field(ge=0)
    start: float = Field(ge=0)
    report: float = Field(ge=0)
    store: float = Field(gt=0)
    first: float = Field(ge=0)
    last: float = Field(ge=0)
    lost: int = Field(ge=0)
    doubled: int = Field(ge=0)

    @property
    def jobs(self) -> int:
        return self.cells + self.victims

    @property
    def each(self) -> float:
        """Real seconds of the driver for one job."""
        return (self.pick + self.start + self.report + self.store) / self.jobs

    @property
    def records_a_second(self) -> float:
        """That the store alone takes."""
        return self.cells / self.store

    @property
    def busy(self) -> float:
        """Share of the workers' simulated time that they were inside jobs."""
        return self.work / (self.workers * self.makespan)

    def keeps_up(self, length: float) -> int:
        """With how many workers, where a job takes ``length`` seconds on average."""
        return int(length / self.each)


class DriverRuns(Origin):
    """The runs of one call, on what machine they were made, and how long the simulated jobs were."""

    schema_version: int = Field(default=SCHEMA, ge=SCHEMA, le=SCHEMA)
    mean: float
    spread: float
    seed: int
    load: float | None
    disk: str | None
    """The file system that the records were written to."""
    date: str
    """UTC, ISO 8601, when the runs ended."""
    runs: tuple[DriverRun, ...] = Field(min_length=1)


def read(path: Path) -> DriverRuns:
    """``UserError`` where ``path`` cannot be read, or holds something else."""
    try:
        return DriverRuns.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"driver: cannot read {path} ({error.strerror}); expected a simulation's JSON") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"{path}: {key}: {fault['msg']}; expected what bench.timing.driver wrote") from error


def text(runs: DriverRuns) -> str:
    return json.dumps(runs.model_dump(mode="json"), indent=1) + "\n"


def table(path: Path) -> str:
    """Markdown, with a line on the origin; where there is no such file, a line that says so."""
    return markdown(read(path)) if path.exists() else f"{NONE}\n"


def markdown(found: DriverRuns) -> str:
    """Two tables, what the driver can do and where its time goes, and a line on the origin."""
    can = ["Workers", "Cells", "Victims", "Workers busy", "Lost", "Doubled", "Store, records/s"]
    can += [f"Jobs of {length} s: keeps up with" for length in LENGTHS]
    goes = ["Workers", "Driver, ms a job", "picking", "starting", "reporting", "store", "first tenth", "last tenth"]
    tables = _table(can, [_can(run) for run in found.runs]), _table(goes, [_goes(run) for run in found.runs])
    return "\n\n".join([*tables, escape(_source(found))]) + "\n"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---:"] * len(heads), *rows))


def _can(run: DriverRun) -> list[str]:
    workers = [f"{names.plain(run.keeps_up(length))} workers" for length in LENGTHS]
    counts = [names.plain(count) for count in (run.workers, run.cells, run.victims)]
    faults = [names.plain(run.lost), names.plain(run.doubled)]
    return [*counts, f"{run.busy:.1%}", *faults, names.plain(int(run.records_a_second)), *workers]


def _goes(run: DriverRun) -> list[str]:
    parts = [part / run.jobs for part in (run.pick, run.start, run.report, run.store)]
    return [names.plain(run.workers), *(f"{1000 * s:.3f}" for s in (run.each, *parts, run.first, run.last))]


def _source(found: DriverRuns) -> str:
    lengths = f"Simulated jobs: log-normal, mean {found.mean:g} s, spread {found.spread:g}, seed {found.seed}."
    load = "" if found.load is None else f"; load {found.load:.1f} of 1 for each CPU"
    where = f"{found.device}{load}; records on {found.disk or 'an unknown file system'}"
    what = f"python {found.python}, torch {found.torch}; commit {(found.commit or 'unknown')[:7]}"
    changed = " with changes" if found.dirty else ""
    return f"{lengths} Real seconds on {where}; {what}{changed}; {found.date[:10]}."
