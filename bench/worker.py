"""``Worker``: does one job after the other and reports each, with where its seconds went. Knows nothing of Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from bench.cells import Cell
from bench.records import Record
from bench.run_cell import CellRunner, reason

logger = logging.getLogger(__name__)


class Worker:
    """What a job's report holds, times in seconds:

    ``seconds``: the job's. ``work``: of these, the defense's own, or the victim's training, with the fitting of its
    triggers and the poisoning. ``gap``: since the end of this worker's job before, absent for its first. ``besides``:
    of a cell's, what was neither its defense nor scoring; absent where the defense has no seconds, or only those of its
    last attempt. ``record``, of a cell: as a line. ``error``, of a victim that could not be prepared: why.
    """

    def __init__(self, runner: CellRunner) -> None:
        self._runner = runner
        self._ended: float | None = None

    def do(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Report of ``job``: ``kind``, ``victim`` or ``cell``, and the ``cell`` as JSON."""
        start = time.perf_counter()
        result: dict[str, Any] = {} if self._ended is None else {"gap": start - self._ended}
        cell = Cell.model_validate_json(job["cell"])
        scored, attacked = self._runner.scoring.seconds, self._runner.attacking.seconds
        record = None
        if job["kind"] == "victim":
            result |= self._prepare(cell)
        else:
            record = self._runner.run(cell)
            result |= {"record": record.line().decode(), "work": record.seconds or 0.0}
        if "work" in result:
            result["work"] += self._runner.attacking.seconds - attacked
        self._ended = time.perf_counter()
        result["seconds"] = self._ended - start
        if record is not None and _one_attempt(record):
            scoring = self._runner.scoring.seconds - scored
            result["besides"] = max(0.0, result["seconds"] - result["work"] - scoring)
        return result

    def _prepare(self, cell: Cell) -> dict[str, Any]:
        try:
            return {"work": self._runner.prepare_victim(cell).seconds or 0.0}
        except Exception as error:  # recorded for each cell of this victim
            logger.debug("victim %s failed", cell.victim_id, exc_info=True)
            return {"error": reason(error)}


def _one_attempt(record: Record) -> bool:
    return record.seconds is not None and "out_of_memory" not in record.details
