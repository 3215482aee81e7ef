"""``python -m bench.sweep FILE.yaml``: expand the grid, skip what is recorded, run the rest, end with the report."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from adapters.errors import UserError
from bench.files import check_writable

NO_ROOM = 3
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class Options:
    """The command line, its paths absolute."""

    file: Path
    overrides: tuple[str, ...]
    budget: str | None
    data_root: Path
    out: Path
    cache: Path
    address: str | None
    max_concurrent: int | None
    dry_run: bool
    retry_failed: bool
    remote: str | None = None
    """The address that the results go to; ``out`` is then the folder in which the sweep works."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all cells have a result, 1 some failed or Ray was lost, 2 wrong input (one line on stderr), 3 the
    disk takes no more (one line), 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter must not end a sweep
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parse(argv)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        return run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {_no_room(error)}", file=sys.stderr)
        return NO_ROOM
    except KeyboardInterrupt:  # before there was anything to tell
        return 130


def _no_room(error: OSError) -> str:
    """The line for a disk that takes no more; raises ``error`` again if it says something else."""
    from bench.outbox import NoRoomError
    from bench.remote import RemoteError

    if isinstance(error, NoRoomError):
        return str(error)
    if isinstance(error, RemoteError):
        return f"{error}; expected a reachable one; what is recorded stays, and the same command goes on"
    if error.errno not in _DISK:
        raise error
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; expected room to write; what is recorded stays, and the same command goes on"


def parse(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__.split(": ", 1)[1])
    parser.add_argument("file", type=Path, metavar="FILE", help="the sweep, e.g. sweeps/sensitivity.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH.TO.KEY=VALUE", dest="overrides",
        help="edit the file's tree, e.g. cell.dataset=gtsrb or 'grid.clean_size=[100,500]'; null removes a key",
    )  # fmt: skip
    parser.add_argument("--budget", metavar="NAME", help="a smaller version that the file describes, e.g. small")
    parser.add_argument("--data-root", type=Path, help="where the data sets lie (default: $IBAU_BENCH_DATA or data)")
    parser.add_argument(
        "--out", default="runs", metavar="OUT",
        help="results go to OUT/NAME (default: runs); a folder, or an address that fsspec knows, e.g. s3://bucket/runs",
    )  # fmt: skip
    parser.add_argument(
        "--work", type=Path, help="where to work while OUT is an address (default: a folder in the user's cache)"
    )
    parser.add_argument(
        "--cache", type=Path,
        help="decoded data sets and victims: a folder (default: OUT/cache, or WORK/cache where OUT is an address)",
    )  # fmt: skip
    parser.add_argument("--address", metavar="HOST:PORT", help="join a running Ray cluster instead of starting one")
    parser.add_argument("--max-concurrent", type=int, metavar="N", help="the most cells at once (default: all fit)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show what would run, and stop")
    parser.add_argument("--retry-failed", action="store_true", help="run cells again whose record says failed")
    given = parser.parse_args(argv)
    if given.max_concurrent is not None and given.max_concurrent < 1:
        raise UserError(f"--max-concurrent: found {given.max_concurrent}; expected at least 1")
    out, remote = _out(given.out, given.work)
    for key in ("--cache", "--data-root"):
        found = getattr(given, key[2:].replace("-", "_"))
        if found and ":/" in str(found):  # as Path writes an address
            raise UserError(f"{key}: found {str(found)!r}; expected a folder, which can be mapped into memory")
    data_root = given.data_root or Path(os.environ.get("IBAU_BENCH_DATA") or "data")
    return Options(
        file=_path(given.file, "FILE"),
        overrides=tuple(given.overrides),
        budget=given.budget,
        data_root=_path(data_root, "--data-root").absolute(),
        out=out,
        cache=_path(given.cache, "--cache").absolute() if given.cache else out / "cache",
        address=given.address,
        max_concurrent=given.max_concurrent,
        dry_run=given.dry_run,
        retry_failed=given.retry_failed,
        remote=remote,
    )


def _out(given: str, work: Path | None) -> tuple[Path, str | None]:
    """The folder to work in, and the address that its results go to, if any."""
    from bench.remote import is_remote, work_folder

    if is_remote(given):
        return _path(work or work_folder(given), "--work").absolute(), given.rstrip("/")
    if work is not None:
        raise UserError(
            f"--work: found {str(work)!r}; expected it with an address as --out only, e.g. s3://bucket/runs"
        )
    return _path(Path(given), "--out").absolute(), None


def _path(given: Path, key: str) -> Path:
    try:
        return given.expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{key}: found {str(given)!r}; expected a path without an unknown user's home") from error


def run(options: Options) -> int:
    from bench import includes  # torch and the adapters take seconds to import: not for --help

    plan = includes.load(options.file, options.overrides, options.data_root, options.budget)
    folder = options.out / plan.name
    if not options.dry_run:
        check_writable(folder, "--out")
    lock = FileLock(str(folder / ".sweep.lock"))
    try:
        if not options.dry_run:
            lock.acquire(timeout=0)
        from bench.session import Session

        return Session(options, plan, folder).run()
    except Timeout:
        raise UserError(
            f"--out: another sweep is writing to {folder}; expected it to end first, or another --out"
        ) from None
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main())
