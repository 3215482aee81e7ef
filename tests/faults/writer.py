"""Writes records one after the other, and says so after each, until it is killed."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from fake_cells import record

from bench.records import RecordStore


def main(folder: Path) -> None:
    store = RecordStore(folder)
    for seed in itertools.count(len(store.read())):
        store.append(record("ibau", seed=seed))
        print(seed, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
