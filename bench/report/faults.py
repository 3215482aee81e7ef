"""What became of injected faults: ``results/faults/faults.jsonl``, a line a kind, and how documents show it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from adapters.errors import UserError, printable
from bench.cells import Frozen
from bench.files import write_atomically

FILE = "faults.jsonl"
SCHEMA = 1
NONE = "*No faults are committed yet.*"
SHARED = "Faults that were injected into one sweep together have its counts in common; the sum has these once."


class FaultRecord(Frozen):
    """One kind of fault: what was done, what the user saw, and what the folder of records held in the end.

    ``expected`` records should be there once all is over, ``lost`` are not, ``doubled`` are there more than once.
    ``others``: cells that the fault was not meant for, and that ended as if there had been none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: int = Field(default=SCHEMA, alias="schema")
    test: str
    """That injected it, as pytest names it."""
    fault: str
    how: str
    injected: int = Field(ge=1)
    expected: int = Field(ge=0)
    lost: int = Field(ge=0)
    doubled: int = Field(ge=0)
    others: int = Field(ge=0)
    seen: tuple[str, ...]
    """Lines as they stood on the terminal or in a record, paths of the test shortened."""
    after: str
    """What was done to go on."""
    sweep: str | None = None
    """Of faults that were injected into one sweep together, and share its records: a name for it."""
    commit: str | None
    dirty: bool | None
    hardware: str
    torch: str


def read(folder: Path) -> list[FaultRecord]:
    """The records in ``folder``, one a fault, in the order written, none where there is no such file; ``UserError`` for
    a line that is none."""
    try:
        lines = (folder / FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"faults: cannot read {folder / FILE} ({error.strerror}); expected records of faults"
        ) from error
    try:
        return [FaultRecord.model_validate_json(line) for line in lines]
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise UserError(
            f"{folder / FILE}: {fault['loc']}: {fault['msg']}; expected what tox -e faults wrote"
        ) from error


def put(folder: Path, record: FaultRecord) -> None:
    """Add ``record``, in the place of an earlier one of its fault."""
    known = {one.fault: one for one in read(folder)}
    _write(folder, list({**known, record.fault: record}.values()))


def forget(folder: Path, tests: Collection[str] | None) -> None:
    """Drop the records of ``tests``, which are about to run, or all: what fails or is skipped this time has none."""
    known = read(folder)
    kept = [one for one in known if tests is not None and one.test not in tests]
    if kept != known:
        _write(folder, kept)


def _write(folder: Path, records: Sequence[FaultRecord]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, "".join(f"{one.model_dump_json(by_alias=True)}\n" for one in records).encode())


def table(folder: Path) -> str:
    """Markdown of the records in ``folder``; where there are none, a line that says so."""
    records = read(folder)
    return markdown(records) if records else f"{NONE}\n"


def markdown(records: Sequence[FaultRecord]) -> str:
    """The counts as a table, then each fault by itself, then where the figures come from."""
    head = ["fault", "injected", "records expected", "lost", "doubled", "cells beside it that went on"]
    rows = [
        [one.fault, *(str(count) for count in (one.injected, one.expected, one.lost, one.doubled, one.others))]
        for one in records
    ]
    injected = sum(one.injected for one in records)
    sweeps = {one.sweep or one.fault: one for one in records}.values()
    held = [sum(getattr(one, name) for one in sweeps) for name in ("expected", "lost", "doubled", "others")]
    total = ["all", *map(str, (injected, *held))]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows, [f"**{one}**" for one in total]]
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts += [SHARED] if len(sweeps) < len(records) else []
    parts += [_section(one) for one in records]
    return "\n\n".join([*parts, _source(records)]) + "\n"


def _section(record: FaultRecord) -> str:
    shown = "\n".join(printable(line).replace("~~~", "~ ~ ~") for line in record.seen)
    return f"### {record.fault}\n\n{record.how}\n\n~~~text\n{shown}\n~~~\n\n{record.after}"


def _source(records: Sequence[FaultRecord]) -> str:
    told = [
        sorted({one.hardware for one in records}),
        sorted({f"torch {one.torch}" for one in records}),
        sorted({f"commit {one.commit[:7]}" for one in records if one.commit}),
    ]
    return "; ".join(", ".join(part) for part in told if part) + "."
