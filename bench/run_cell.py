"""A cell in, a record out: the victim, the defense under the clock, the scores."""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from adapters import datasets
from adapters.errors import printable
from adapters.protocols import DefenseResult, ImageTensors, LabelledImages, PassCounter
from bench.attempts import free_memory, is_out_of_memory, run_within_memory
from bench.cells import Cell
from bench.clock import Stopwatch, load_what_torch_loads_late
from bench.data_identity import data_identity
from bench.defense_run import DefenseRun, Prepared, build_defense, clean_set, has_effect
from bench.evasion import evasion_accuracy
from bench.provenance import Commit, provenance
from bench.records import Passes, Record, Status, TriggerFigures, TriggerScores, Tsne, VictimFigures, jsonable
from bench.returned import checked
from bench.scoring import TRACE_IMAGES, Estimate, Scorer, Scores, der
from bench.seeds import derive_seed
from bench.splits import split_test
from bench.training import autocast_dtype
from bench.tsne import lay_out
from bench.victims import Victim, VictimStore
from bench.watchdog import OverdueError

logger = logging.getLogger(__name__)

REASON_LETTERS = 2000
"""How much of an exception's message a record keeps."""

Value = TypeVar("Value")


class _Recent(Generic[Value]):
    """The ``size`` values used last, each made once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key not in self._items:
            while len(self._items) >= self._size:  # before making: two large values need not be held at once
                self._items.popitem(last=False)
            self._items[key] = make()
        self._items.move_to_end(key)
        return self._items[key]


class CellRunner:
    """Runs cells on one device, one after the other, and keeps what the next one is likely to need again."""

    def __init__(self, data_root: Path, cache_dir: Path, device: torch.device, commit: Commit) -> None:
        self._data_root, self._cache_dir, self._device, self._commit = data_root, cache_dir, device, commit
        self._victims = VictimStore(cache_dir)
        self._data: _Recent[ImageTensors] = _Recent(2)
        self._prepared: _Recent[Prepared] = _Recent(2)
        self.scoring = Stopwatch()
        """Runs while models are scored: after a defense, between its rounds, and victims."""
        self.attacking = self._victims.attacking
        load_what_torch_loads_late()

    def prepare_victim(self, cell: Cell) -> Victim:
        """The victim of ``cell`` with its triggers and scores; for a cell without an attack the clean model alone."""
        if cell.is_clean:
            return self._victims.get_or_train(cell, self._load(cell), self._device)
        return self.prepare(cell).victim

    def prepare(self, cell: Cell) -> Prepared:
        """The victim of ``cell``, trained if nobody has it yet, and its scores."""
        return self._prepared.get(cell.victim_id, lambda: self._prepare(cell))

    def _prepare(self, cell: Cell) -> Prepared:
        data = self._load(cell)
        split = split_test(data, derive_seed("split", cell.dataset, cell.seed))
        scorer = Scorer(data, split, self._victims.attacks(cell, data, self._device), self._device)
        victim = self._victims.get_or_train(cell, data, self._device)
        with self.scoring:
            before, visible = self._victims.scores(victim, scorer), scorer.visibility()
        tracer, traced = scorer.sample(TRACE_IMAGES, autocast_dtype(self._device))
        first = Scores.of(before.outcomes.at(traced), scorer.names)
        return Prepared(data, split, scorer, victim, before, visible, tracer, first)

    def _load(self, cell: Cell) -> ImageTensors:
        return self._data.get(cell.dataset, lambda: datasets.load(cell.dataset, self._data_root, self._cache_dir))

    def run(self, cell: Cell) -> Record:
        """The record of ``cell``. An exception becomes a record too: of status ``failed``, with its reason."""
        source = provenance(self._device, self._commit)
        try:
            prepared = self.prepare(cell)
            told = {"provenance": source, "data": data_identity(prepared.data)}
            return run_cell(cell, prepared, self._device, self.scoring).model_copy(update=told)
        except (Exception, SystemExit) as error:  # the boundary: whatever a plug-in raises ends here
            logger.debug("cell %s failed", cell.id, exc_info=True)
            why, short = reason(error), is_out_of_memory(error)
        if short:  # outside the handler, whose traceback keeps tensors alive that the next cell may need the room of
            free_memory()
            why = f"out of memory: {why}"
        return Record(id=cell.id, cell=cell, status="failed", reason=why, provenance=source)


def run_cell(cell: Cell, prepared: Prepared, device: torch.device, scoring: Stopwatch | None = None) -> Record:
    """Defend the victim as ``cell`` says and score what comes out. Raises whatever the defense raises.

    ``scoring`` runs while a model is scored.
    """
    scoring = scoring or Stopwatch()
    before = prepared.before
    figures = _victim_figures(cell, prepared)
    least = cell.min_asr * (before.acc if _is_all_to_all(cell) else 1.0)
    if before.asr < least:  # not so for a clean model, whose ASR is NaN
        why = f"the victim's ASR is {before.asr:.4f}; expected at least {least:.4f} (min_asr {cell.min_asr:g})"
        return Record(id=cell.id, cell=cell, status="attack_failed", reason=why, victim=figures)
    clean = clean_set(cell, prepared, device)
    try:
        run, attempts = run_within_memory(
            build_defense(cell),
            len(clean.labels),
            lambda bound: _defend(cell, prepared, clean, device, scoring, bound),
        )
    except OverdueError as error:
        return Record(id=cell.id, cell=cell, status="timeout", reason=str(error), victim=figures)
    model = run.result.model
    with scoring:
        untouched = _fingerprint(model) == _fingerprint(prepared.victim.model)
        after = before if untouched else prepared.scorer.score(model)
        attacked = _of_the_attack(cell, before, after)
        gap = prepared.scorer.error_gap(model, clean, after) if len(clean.labels) else None
        evasion, tsne = _evasion(cell, prepared, model), _tsne(cell, prepared, model)
    effect = run.seconds_to_effect
    if effect is None and has_effect(before.acc, after.acc, after.asr):
        effect = run.seconds
    return Record(
        id=cell.id,
        cell=cell,
        status=cast(Status, run.result.status),  # a plug-in's word: pydantic checks it
        reason=run.result.reason,
        victim=figures,
        acc=after.acc,
        acc_interval=after.acc_interval,
        **attacked,
        error_gap=gap.value if gap else None,
        error_gap_interval=gap.interval if gap else None,
        evasion_accuracy=evasion.value if evasion else None,
        evasion_accuracy_interval=evasion.interval if evasion else None,
        tsne=tsne,
        seconds=run.seconds,
        seconds_to_effect=effect,
        peak_memory_bytes=run.peak_memory,
        passes=run.passes,
        rounds=tuple(run.rounds),
        details=jsonable({**run.result.details, **attempts}),
    )


def _of_the_attack(cell: Cell, before: Scores, after: Scores) -> dict[str, Any]:
    """The fields of ``Record`` that a clean model has not."""
    if cell.is_clean:
        return {}
    rating = der(before, after, seed=derive_seed("der", cell.id))
    return {
        "asr": after.asr,
        "asr_interval": after.asr_interval,
        "ra": after.ra,
        "ra_interval": after.ra_interval,
        "triggers": tuple(TriggerScores(**row) for row in _rows(cell, after)),
        "der": rating.value,
        "der_interval": rating.interval,
    }


def _victim_figures(cell: Cell, prepared: Prepared) -> VictimFigures:
    victim, before = prepared.victim, prepared.before
    digests = [getattr(trigger, "digest", None) for trigger, _ in prepared.scorer.attacks]
    triggers = [
        TriggerFigures(**row, **seen._asdict(), digest=digest)
        for row, seen, digest in zip(_rows(cell, before), prepared.visibility, digests, strict=True)
    ]
    return VictimFigures(
        id=victim.id,
        acc=before.acc,
        asr=None if cell.is_clean else before.asr,
        ra=None if cell.is_clean else before.ra,
        seconds=victim.seconds,
        triggers=tuple(triggers),
    )


def _rows(cell: Cell, scores: Scores) -> list[dict[str, Any]]:
    """What each trigger reaches by itself, as the fields of ``TriggerScores``."""
    return [
        {"trigger": name, "target": target, "asr": asr, "ra": ra, "count": count}
        for (name, asr, ra, count), target in zip(scores.per_trigger, cell.targets, strict=True)
    ]


def _evasion(cell: Cell, prepared: Prepared, model: nn.Module) -> Estimate | None:
    if cell.evasion_radius is None:
        return None
    scorer, seed = prepared.scorer, derive_seed("evasion", cell.dataset, cell.seed)
    return evasion_accuracy(model, scorer.images, scorer.labels, cell.evasion_radius, seed)


def _tsne(cell: Cell, prepared: Prepared, model: nn.Module) -> Tsne | None:
    if cell.tsne_images is None:
        return None
    models = (prepared.victim.model, model)
    return lay_out(models, prepared.scorer, cell.tsne_images, derive_seed("tsne", cell.dataset, cell.seed))


def _fingerprint(model: nn.Module) -> str:
    """SHA-256 of the structure, the hooks' number (a pruning defense acts by them) and every parameter and buffer."""
    total = hashlib.sha256(str(model).encode())
    for module in model.modules():
        hooks = [hook for hook in module._forward_hooks.values() if hook.__module__ != PassCounter.__module__]
        total.update(repr((len(hooks), len(module._forward_pre_hooks), "forward" in vars(module))).encode())
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


class _Trace:
    """The curves of a run: each round scored, on a sample of the images."""

    def __init__(self, prepared: Prepared, scoring: Stopwatch) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.seconds_to_effect: float | None = None
        self._prepared, self._scoring = prepared, scoring

    def __call__(self, current: nn.Module, info: Mapping[str, Any], seconds: float) -> None:
        with self._scoring:
            scores = self._prepared.tracer.score(current)
        acc, helper = self._prepared.before_traced.acc, bool(info.get("helper"))
        if self.seconds_to_effect is None and has_effect(acc, scores.acc, scores.asr, helper=helper):
            self.seconds_to_effect = seconds
        self.rounds.append({**_round_figures(scores), **jsonable(info), "elapsed_seconds": seconds})


class _Run(NamedTuple):
    result: DefenseResult
    seconds: float
    seconds_to_effect: float | None
    peak_memory: int
    passes: Passes
    rounds: list[dict[str, Any]]


def _defend(
    cell: Cell,
    prepared: Prepared,
    clean: LabelledImages,
    device: torch.device,
    scoring: Stopwatch,
    micro_batch: int | None,
) -> _Run:
    """One attempt, on a fresh copy of the victim and with the clock at zero."""
    trace = _Trace(prepared, scoring)
    work = DefenseRun(cell, prepared, clean, device, trace, micro_batch=micro_batch)
    result = checked(work.run(), str(cell.defense["name"]), _probe(prepared, device), prepared.data.num_classes)
    return _Run(result, work.seconds, trace.seconds_to_effect, work.peak_memory, work.passes, trace.rounds)


def _probe(prepared: Prepared, device: torch.device) -> Tensor:
    """Two test images, float32 in [0, 1], on ``device``."""
    return prepared.data.test.images[:2].to(device).float().div_(255)


def _round_figures(scores: Scores) -> dict[str, Any]:
    """ACC and ASR after a round, and with several triggers the ASR of each: the curves of Figures 3 and 4."""
    figures: dict[str, Any] = {"acc": scores.acc, "asr": scores.asr, "images": scores.clean_count}
    if len(scores.per_trigger) > 1:
        figures["asr_by_trigger"] = {name: asr for name, asr, _, _ in scores.per_trigger}
    return cast(dict[str, Any], jsonable(figures))


def _is_all_to_all(cell: Cell) -> bool:
    return "all_to_all" in cell.targets


def reason(error: BaseException) -> str:
    """One line of printable text: the exception and the last frame of its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    try:
        message = str(error)
    except Exception:  # a plug-in's exception may do anything when it is shown
        message = "its message cannot be shown"
    text = f"{type(error).__name__}: {message[:REASON_LETTERS]}{where}"
    return printable(" ".join(text.split()))
