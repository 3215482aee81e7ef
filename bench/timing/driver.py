"""``python -m bench.timing.driver``: how many workers a driver keeps up with, by simulated sweeps (``docs/scale.md``).

Run it on an otherwise idle machine, with the file on the kind of disk that records will be written to.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from adapters.errors import UserError
from bench.files import check_writable, write_atomically
from bench.report.driver import DriverRun, DriverRuns, markdown, text
from bench.timing.hardware import facts
from bench.timing.simulation import Lengths, Simulation, plan

MOST_CELLS = 900_000
"""More would be more combinations than a sweep file may have."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the runs as JSON, and show them as the table of the document. Exit status 2 for wrong input."""
    given = _parser().parse_args(arguments)
    file: Path = given.file.absolute()
    try:
        check_writable(file.parent, "--file")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lengths = Lengths(given.mean, given.spread, given.seed)
    torch.set_num_threads(1)
    runs: list[DriverRun] = []
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".driver-") as folder:
        disk = file_system(Path(folder))
        for run in _simulate(given.workers, given.cells, lengths, Path(folder)):
            runs.append(run)  # written one by one: a run takes minutes, and an interrupt costs the last alone
            found = DriverRuns(
                mean=lengths.mean,
                spread=lengths.spread,
                seed=lengths.seed,
                disk=disk,
                date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                runs=tuple(runs),
                **facts(torch.device("cpu")),
            )
            write_atomically(file, text(found).encode())
    print(f"\n{markdown(found)}\n{file}")
    return int(any(run.lost or run.doubled for run in runs))


def _simulate(workers: Sequence[int], cells: int, lengths: Lengths, folder: Path) -> Iterator[DriverRun]:
    """A run for each of ``workers``, one after the other, each with a store of its own."""
    cut = plan(cells, folder)
    for number, count in enumerate(workers):
        run = Simulation(cut, count, lengths, folder / str(number)).run()
        print(f"{count} workers, {run.jobs} jobs: {1000 * run.each:.3f} ms of the driver for each", flush=True)
        yield run


def file_system(path: Path) -> str | None:
    """The kind of file system that ``path`` is on, where the system tells of it (``/proc/mounts``)."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    mounts = [(Path(point), kind) for _, point, kind, *_ in (line.split() for line in lines)]
    above = [(len(point.parts), kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(above, key=lambda one: one[0])[1] if above else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.timing.driver", description=(__doc__ or "").split("\n\n")[0])
    whole, positive = _number(int, 1), _number(float, 1e-6)
    parser.add_argument("--workers", type=whole, nargs="+", default=[10, 100, 1000], help="default: 10 100 1000")
    parser.add_argument("--cells", type=_number(int, 1, MOST_CELLS), default=100_000, help="default: %(default)s")
    parser.add_argument("--mean", type=positive, default=60.0, help="simulated seconds of a job; default: %(default)s")
    parser.add_argument(
        "--spread", type=_number(float, 0.0), default=0.7, help="deviation of their logarithms; default: %(default)s"
    )
    parser.add_argument("--seed", type=_number(int, 0), default=0, help="default: %(default)s")
    parser.add_argument("--file", type=Path, default=Path("results/scale/driver.json"), help="default: %(default)s")
    return parser


def _number(kind: Callable[[str], float], least: float, most: float = 1e9) -> Callable[[str], float]:
    """An option's type: a number from ``least`` to ``most``."""

    def parse(given: str) -> float:
        try:
            found = kind(given)
        except ValueError:
            found = math.nan
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"found {given!r}; expected a number from {least:g} to {most:,.0f}")
        return found

    return parse


if __name__ == "__main__":
    sys.exit(main())
