"""The paper's four marks (section 6.1), as symbols that need no colour to be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import published

MAX_ASR = 0.2
MAX_ACC_LOSS = 0.1
ACC_GAP = 0.01
ASR_GAP = 0.04


@dataclass(frozen=True)
class Mark:
    name: str
    symbol: str
    meaning: str
    short: str
    """The meaning in the few words that stand under every table; ``meaning`` stands once, at the end."""


ASR_HIGH = Mark("asr-high", "▲", "ASR not under 20 %", "ASR not under 20 %")
ACC_LOST = Mark(
    "acc-lost", "▼", "ACC down by more than 10 points against the undefended model", "ACC down by over 10 points"
)
BEST = Mark(
    "best",
    "★",
    "best of the paper's baselines: highest ACC minus ASR among those with neither ▲ nor ▼",
    "best of the paper's baselines",
)
COMPARABLE = Mark(
    "comparable",
    "✓",
    "I-BAU comparable to ★ or better: ACC less than 1 point below it; ASR less than 4 points above it; neither where "
    "it has a ▲ or ▼. (The paper also lets pass an ASR near guessing the target; its ASR counts the target's own "
    "images, ours does not.) Where none of the baselines there has a ★: neither ▲ nor ▼",
    "I-BAU comparable to it or better",
)
UNDETECTED = Mark("undetected", "×", "no trigger was detected, and the model left as it was", "no trigger detected")
ALL = (ASR_HIGH, ACC_LOST, BEST, COMPARABLE, UNDETECTED)


@dataclass(frozen=True)
class Outcome:
    """Mean figures of one column of a row; ``before`` is the victim's ACC."""

    defense: str
    acc: float
    asr: float
    before: float | None

    @property
    def failings(self) -> tuple[list[Mark], list[Mark]]:
        lost = self.before is not None and self.before - self.acc > MAX_ACC_LOSS
        return [ACC_LOST] if lost else [], [ASR_HIGH] if self.asr >= MAX_ASR else []

    @property
    def effective(self) -> bool:
        return not any(self.failings)


def mark(outcomes: Mapping[str, Outcome]) -> dict[str, tuple[Sequence[Mark], Sequence[Mark]]]:
    """Marks for (ACC, ASR) of each column. No defense is marked nothing: it is the yardstick.

    I-BAU is measured by the paper's baselines; controls, and defenses of one's own, have ▲ and ▼ alone. A model that
    fails by one figure is comparable by neither: a constant one has an ASR of 0.
    """
    baselines = {key: each for key, each in outcomes.items() if each.defense in published.BASELINES}
    able = {key: each for key, each in baselines.items() if each.effective}
    best = max(able, key=lambda key: able[key].acc - able[key].asr) if able else None
    found: dict[str, tuple[Sequence[Mark], Sequence[Mark]]] = {}
    for key, outcome in outcomes.items():
        acc, asr = outcome.failings if outcome.defense != "none" else ([], [])
        if key == best:
            acc, asr = [*acc, BEST], [*asr, BEST]
        if outcome.defense == "ibau" and baselines and outcome.effective:
            good_acc, good_asr = _comparable(outcome, able[best] if best else None)
            acc = [COMPARABLE] if good_acc else []
            asr = [COMPARABLE] if good_asr else []
        found[key] = (acc, asr)
    return found


def _comparable(ours: Outcome, best: Outcome | None) -> tuple[bool, bool]:
    """Whether the ACC and ASR of an I-BAU that works are comparable. Where no baseline works, working is enough."""
    if best is None:
        return True, True
    return ours.acc > best.acc - ACC_GAP, ours.asr < best.asr + ASR_GAP
