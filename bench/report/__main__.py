"""``python -m bench.report RESULTS [--format html,md,latex,csv] [--no-figures]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import UserError
from bench.mirror import Mirror
from bench.records import RecordStore
from bench.remote import Remote, RemoteError, is_remote, work_folder
from bench.report import FORMATS, build


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the report and print its path. Exit status 2, and one line on standard error, for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Report of a folder of records.")
    parser.add_argument(
        "results", metavar="RESULTS",
        help="folder with records.jsonl, JSON of tox -e bench, or the address of OUT/NAME, e.g. s3://bucket/runs/NAME",
    )  # fmt: skip
    parser.add_argument("--format", default=",".join(FORMATS), help="comma-separated, of: %(default)s (default: all)")
    parser.add_argument("--no-figures", action="store_true", help="tables, claims and notes alone: no plots/")
    options = parser.parse_args(arguments)
    try:
        formats = [name.strip() for name in options.format.split(",")]
        print(build(_folder(options.results), formats, figures=not options.no_figures))
    except (UserError, RemoteError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


def _folder(results: str) -> Path:
    """A local folder: of an address, the one that its records are brought to; nothing is written there."""
    if not is_remote(results):
        return Path(results)
    folder = work_folder(results)
    Mirror(Remote(results, "RESULTS"), folder).pull(RecordStore(folder))
    return folder


if __name__ == "__main__":
    sys.exit(main())
