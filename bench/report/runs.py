"""What the runs of sweeps took (``ledger.json``, ``bench.ledger``), and how a document shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.errors import UserError
from bench.ledger import FILE
from bench.progress import duration
from bench.records import Record, RecordStore
from bench.report.markdown import escape

HEADS = ("sweep", "records", "runs", "time", "workers", "in jobs", "training and defending", "hardware")
NOTE = (
    "Time from the start of a run's first job to the end of its last, of several runs their sum; shares are of the time"
    " of all workers."
)
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Run(BaseModel):
    """One run of a sweep, as ``Ledger.entry`` tells of it; what else it tells is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seconds: _Seconds
    offered_seconds: _Seconds
    busy_seconds: _Seconds
    work_seconds: _Seconds
    workers: tuple[tuple[float, int], ...] = ()


class _Ledger(BaseModel):
    runs: tuple[Run, ...] = Field(min_length=1)


def read(folder: Path) -> tuple[Run, ...]:
    """The runs in ``folder``'s ledger; ``UserError`` if it has none that can be read."""
    try:
        return _Ledger.model_validate_json((folder / FILE).read_bytes()).runs
    except (OSError, ValidationError):
        raise UserError(f"runs: found no {FILE} of a sweep in {str(folder)!r}; expected the folder of one") from None


def table(folders: Sequence[Path]) -> str:
    """A line for each of ``folders``, each with ``records.jsonl`` and ``ledger.json``."""
    lines = [f"| {' | '.join(HEADS)} |", f"|{' --- |' * len(HEADS)}", *map(_line, folders)]
    return "\n".join([*lines, "", NOTE, ""])


def _line(folder: Path) -> str:
    runs, records = read(folder), RecordStore(folder).read()
    offered = sum(run.offered_seconds for run in runs)
    shares = [
        f"{100 * min(1.0, sum(part) / offered):.0f} %" if offered else "–"
        for part in ([run.busy_seconds for run in runs], [run.work_seconds for run in runs])
    ]
    workers = sorted({count for run in runs for _, count in run.workers})
    cells = [
        folder.name, str(len(records)), str(len(runs)), duration(sum(run.seconds for run in runs)),
        ", ".join(map(str, workers)), *shares, ", ".join(hardware(records)) or "–",
    ]  # fmt: skip
    return f"| {' | '.join(map(escape, cells))} |"


def hardware(records: Sequence[Record]) -> list[str]:
    """What computed those records that say so."""
    origins = [record.provenance for record in records if record.provenance]
    return sorted({f"{one.device}, {one.threads} thread(s)" for one in origins})
