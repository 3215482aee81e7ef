"""``python -m bench.report RESULTS [--format html,md,latex,csv]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import UserError
from bench.report import FORMATS, build


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the report and print its path. Exit status 2, and one line on standard error, for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Report of a folder of records.")
    parser.add_argument(
        "results", metavar="RESULTS", type=Path, help="folder with records.jsonl, or JSON of tox -e bench"
    )
    parser.add_argument("--format", default=",".join(FORMATS), help="comma-separated, of: %(default)s (default: all)")
    options = parser.parse_args(arguments)
    try:
        print(build(options.results, [name.strip() for name in options.format.split(",")]))
    except UserError as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
