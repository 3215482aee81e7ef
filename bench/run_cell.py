"""A cell in, a record out: the victim, the defense under the clock, the scores."""

from __future__ import annotations

import copy
import hashlib
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from adapters import datasets, defenses
from adapters.attacks import Visibility
from adapters.errors import printable
from adapters.protocols import (
    Defense,
    DefenseContext,
    DefenseResult,
    ImageTensors,
    LabelledImages,
    PassCounter,
    TrainingContext,
    TrainingData,
)  # fmt: skip
from bench.attempts import free_memory, is_out_of_memory, run_within_memory
from bench.cells import Cell, content_hash
from bench.clock import load_what_torch_loads_late, now
from bench.evasion import evasion_accuracy
from bench.memory import PeakMemory
from bench.provenance import Commit, provenance
from bench.records import Passes, Record, Status, TriggerFigures, TriggerScores, Tsne, VictimFigures, jsonable
from bench.returned import checked
from bench.scoring import TRACE_IMAGES, Estimate, Scorer, Scores, der
from bench.seeds import derive_seed
from bench.splits import Split, clean_indices, split_test
from bench.tsne import lay_out
from bench.victims import Victim, VictimStore, new_model, poisoned_training_set
from bench.watchdog import OverdueError, Watchdog

logger = logging.getLogger(__name__)

EFFECT_ASR = 0.2
EFFECT_ACC_LOSS = 0.1
"""A defense has taken effect once ASR is below the one and ACC has fallen by at most the other (Table 6)."""

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


class Prepared(NamedTuple):
    """What the cells of one victim share."""

    data: ImageTensors
    split: Split
    scorer: Scorer
    victim: Victim
    before: Scores
    visibility: tuple[Visibility, ...]
    tracer: Scorer
    before_traced: Scores


@dataclass
class Clock:
    """Seconds of the defense's own work: stopped while the harness scores. CUDA is synchronised at both ends."""

    device: torch.device
    _total: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        self._since = now(self.device)

    def stop(self) -> None:
        if self._since is not None:
            self._total += now(self.device) - self._since
            self._since = None

    @property
    def seconds(self) -> float:
        return self._total + (0.0 if self._since is None else time.perf_counter() - self._since)


@dataclass(frozen=True)
class _TimedContext(DefenseContext):
    """A context whose time limit counts the defense's own seconds only."""

    clock: Clock = field(default_factory=lambda: Clock(torch.device("cpu")))
    limit: float | None = None

    def out_of_time(self) -> bool:
        return self.limit is not None and self.clock.seconds > self.limit


@dataclass(frozen=True, kw_only=True)
class _TimedTrainingContext(_TimedContext, TrainingContext):
    """The same, with the poisoned training data."""


class CellRunner:
    """Runs cells on one device, one after the other, and keeps what the next one is likely to need again."""

    def __init__(self, data_root: Path, cache_dir: Path, device: torch.device, commit: Commit) -> None:
        self._data_root, self._cache_dir, self._device, self._commit = data_root, cache_dir, device, commit
        self._victims = VictimStore(cache_dir)
        self._data: _Recent[ImageTensors] = _Recent(2)
        self._prepared: _Recent[Prepared] = _Recent(2)
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
        before = self._victims.scores(victim, scorer)
        tracer, traced = scorer.sample(TRACE_IMAGES)
        first = Scores.of(before.outcomes.at(traced), scorer.names)
        return Prepared(data, split, scorer, victim, before, scorer.visibility(), tracer, first)

    def _load(self, cell: Cell) -> ImageTensors:
        return self._data.get(cell.dataset, lambda: datasets.load(cell.dataset, self._data_root, self._cache_dir))

    def run(self, cell: Cell) -> Record:
        """The record of ``cell``. An exception becomes a record too: of status ``failed``, with its reason."""
        source = provenance(self._device, self._commit)
        try:
            return run_cell(cell, self.prepare(cell), self._device).model_copy(update={"provenance": source})
        except (Exception, SystemExit) as error:  # the boundary: whatever a plug-in raises ends here
            logger.debug("cell %s failed", cell.id, exc_info=True)
            why, short = reason(error), is_out_of_memory(error)
        if short:  # outside the handler, whose traceback keeps tensors alive that the next cell may need the room of
            free_memory()
            why = f"out of memory: {why}"
        return Record(id=cell.id, cell=cell, status="failed", reason=why, provenance=source)


def run_cell(cell: Cell, prepared: Prepared, device: torch.device) -> Record:
    """Defend the victim as ``cell`` says and score what comes out. Raises whatever the defense raises."""
    before = prepared.before
    figures = _victim_figures(cell, prepared)
    least = cell.min_asr * (before.acc if _is_all_to_all(cell) else 1.0)
    if before.asr < least:  # not so for a clean model, whose ASR is NaN
        why = f"the victim's ASR is {before.asr:.4f}; expected at least {least:.4f} (min_asr {cell.min_asr:g})"
        return Record(id=cell.id, cell=cell, status="attack_failed", reason=why, victim=figures)
    clean = _clean_set(cell, prepared, device)
    try:
        run, attempts = run_within_memory(
            build_defense(cell), len(clean.labels), lambda bound: _defend(cell, prepared, clean, device, bound)
        )
    except OverdueError as error:
        return Record(id=cell.id, cell=cell, status="timeout", reason=str(error), victim=figures)
    untouched = _fingerprint(run.result.model) == _fingerprint(prepared.victim.model)
    after = before if untouched else prepared.scorer.score(run.result.model)
    gap = prepared.scorer.error_gap(run.result.model, clean, after) if len(clean.labels) else None
    evasion = _evasion(cell, prepared, run.result.model)
    rating = None if cell.is_clean else der(before, after, seed=derive_seed("der", cell.id))
    effect = run.seconds_to_effect
    if effect is None and _has_effect(before, after):
        effect = run.seconds
    return Record(
        id=cell.id,
        cell=cell,
        status=cast(Status, run.result.status),  # a plug-in's word: pydantic checks it
        reason=run.result.reason,
        victim=figures,
        acc=after.acc,
        acc_interval=after.acc_interval,
        asr=None if cell.is_clean else after.asr,
        asr_interval=None if cell.is_clean else after.asr_interval,
        ra=None if cell.is_clean else after.ra,
        ra_interval=None if cell.is_clean else after.ra_interval,
        triggers=tuple(TriggerScores(**row) for row in _rows(cell, after)),
        der=rating.value if rating else None,
        der_interval=rating.interval if rating else None,
        error_gap=gap.value if gap else None,
        error_gap_interval=gap.interval if gap else None,
        evasion_accuracy=evasion.value if evasion else None,
        evasion_accuracy_interval=evasion.interval if evasion else None,
        tsne=_tsne(cell, prepared, run.result.model),
        seconds=run.seconds,
        seconds_to_effect=effect,
        peak_memory_bytes=run.peak_memory,
        passes=run.passes,
        rounds=tuple(run.rounds),
        details=jsonable({**run.result.details, **attempts}),
    )


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


class _Run(NamedTuple):
    result: DefenseResult
    seconds: float
    seconds_to_effect: float | None
    peak_memory: int
    passes: Passes
    rounds: list[dict[str, Any]]


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


def _defend(
    cell: Cell, prepared: Prepared, clean: LabelledImages, device: torch.device, micro_batch: int | None = None
) -> _Run:
    """Run the defense on a copy of the victim; the clock, the counter and the memory watch stop while scoring."""
    defense = build_defense(cell)
    model = copy.deepcopy(prepared.victim.model)
    clock, passes, watchdog = Clock(device), PassCounter(), Watchdog(cell.time_limit)
    detach = passes.attach(model)
    rounds: list[dict[str, Any]] = []
    effect: list[float] = []

    def on_round(current: nn.Module, info: Mapping[str, Any]) -> None:
        clock.stop()
        watchdog.stop()
        memory.pause()
        passes.enabled = False
        scores = prepared.tracer.score(current)
        if not effect and _has_effect(prepared.before_traced, scores):
            effect.append(clock.seconds)
        rounds.append({**_round_figures(scores), "seconds": clock.seconds, **jsonable(info)})
        passes.enabled = True
        memory.resume()
        watchdog.start()
        clock.start()

    limit = cell.time_limit
    given: dict[str, Any] = {
        "num_classes": prepared.data.num_classes,
        "device": device,
        "seed": _defense_seed(cell),
        "radius": cell.radius,
        "deadline": None if limit is None else time.monotonic() + limit,
        "on_round": on_round,
        "passes": passes,
        "micro_batch": micro_batch,
        "clock": clock,
        "limit": limit,
    }
    context: DefenseContext = _TimedContext(**given)
    if defense.needs_training_data:
        context = _TimedTrainingContext(**given, **_training_data(cell, prepared, passes))
    memory = PeakMemory(device)
    watchdog.start()
    try:
        clock.start()
        result = defense.run(model, clean, context)
        clock.stop()
    finally:
        watchdog.stop()
    memory.pause()
    passes.enabled = False
    detach()
    result = checked(result, defense.name, _probe(prepared, device), prepared.data.num_classes)
    counted = Passes(**passes.as_dict())
    return _Run(result, clock.seconds, effect[0] if effect else None, memory.bytes, counted, rounds)


def _probe(prepared: Prepared, device: torch.device) -> Tensor:
    """Two test images, float32 in [0, 1], on ``device``."""
    return prepared.data.test.images[:2].to(device).float().div_(255)


def _round_figures(scores: Scores) -> dict[str, Any]:
    """ACC and ASR after a round, and with several triggers the ASR of each: the curves of Figures 3 and 4."""
    figures: dict[str, Any] = {"acc": scores.acc, "asr": scores.asr, "images": scores.clean_count}
    if len(scores.per_trigger) > 1:
        figures["asr_by_trigger"] = {name: asr for name, asr, _, _ in scores.per_trigger}
    return cast(dict[str, Any], jsonable(figures))


def _training_data(cell: Cell, prepared: Prepared, passes: PassCounter) -> dict[str, Any]:
    def untrained() -> nn.Module:
        model = new_model(cell, prepared.data)
        passes.attach(model)
        return model

    poisoned = poisoned_training_set(cell, prepared.data, prepared.scorer.attacks)
    data = TrainingData(poisoned.images, poisoned.labels, poisoned.rows)
    return {"training_data": data, "untrained": untrained}


def build_defense(cell: Cell) -> Defense:
    return defenses.build(dict(cell.defense))


def _clean_set(cell: Cell, prepared: Prepared, device: torch.device) -> LabelledImages:
    """The defender's images, float32 in [0, 1] on ``device``: (n, C, H, W), and their labels (n,)."""
    test = prepared.data.test
    if cell.clean_size is None:
        index = torch.empty(0, dtype=torch.int64)
    else:
        index = clean_indices(prepared.split, cell.clean_size)
    return LabelledImages(test.images[index].to(device).float().div_(255), test.labels[index].to(device))


def _defense_seed(cell: Cell) -> int:
    """Data set, attack, defense, repetition and run: cells that differ in another axis share their random numbers."""
    attack = content_hash(cell.model_dump(mode="json", include={"attack", "target", "victim"}))
    run = () if cell.run is None else (cell.run,)
    return derive_seed("defense", cell.dataset, attack, cell.defense["name"], cell.seed, *run)


def _is_all_to_all(cell: Cell) -> bool:
    return "all_to_all" in cell.targets


def _has_effect(before: Scores, after: Scores) -> bool:
    return after.asr < EFFECT_ASR and before.acc - after.acc <= EFFECT_ACC_LOSS


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
