"""``python -m bench.theory [--measure] [--only STUDY]``: draw the theory's plots from the committed records."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.theory.figures import draw
from bench.theory.measure import STUDIES, record


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``FIGURES/STUDY.svg`` and ``.png``, and with ``--measure`` first ``RESULTS/STUDY.json``.

    Exit status 2, and one line on standard error, where there is no record to draw from.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.theory", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure anew before drawing")
    parser.add_argument("--results", type=Path, default=Path("results/theory"), help="default: %(default)s")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"), help="default: %(default)s")
    parser.add_argument("--only", choices=list(STUDIES), action="append", help="may be repeated; default: all")
    given = parser.parse_args(arguments)
    given.figures.mkdir(parents=True, exist_ok=True)
    for study in given.only or STUDIES:
        path = given.results / f"{study}.json"
        if given.measure:
            torch.set_num_threads(1)
            given.results.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record(study), indent=1) + "\n", encoding="utf-8")
        if not path.is_file():
            print(f"bench.theory: {path}: found no record; expected one, or --measure", file=sys.stderr)
            return 2
        vector, raster = draw(study, json.loads(path.read_text(encoding="utf-8"))["rows"])
        (given.figures / f"{study}.svg").write_bytes(vector)
        (given.figures / f"{study}.png").write_bytes(raster)
        print(given.figures / f"{study}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
