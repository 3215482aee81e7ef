"""How things are written for a reader: names, percentages, sizes."""

from __future__ import annotations

from typing import Any

_DEFENSES = {
    "none": "No defense",
    "fine_tuning": "Fine-tuning",
    "ibau": "I-BAU",
    "naive_uap": "Naive UAP",
    "neural_cleanse": "Neural Cleanse",
    "deep_inspect": "DeepInspect",
    "tabor": "TABOR",
    "fine_pruning": "Fine-Pruning",
    "nad": "NAD",
    "dp_sgd": "DP-SGD",
}
COLUMN_ORDER = (
    "none", "fine_tuning", "naive_uap", "neural_cleanse", "deep_inspect", "tabor", "fine_pruning", "nad", "dp_sgd",
)  # fmt: skip
"""The paper's columns with our controls before them; others follow by name, and I-BAU is the last."""
ATTACK_ORDER = ("badnets", "blend", "l0_inv", "l2_inv", "smooth", "trojan_sq", "trojan_wm", "all_to_all")
"""The rows of the paper's Tables 1 and 2."""

_ATTACKS = {
    "badnets": "BadNets",
    "blend": "Blend",
    "l0_inv": "ℓ0 inv",
    "l2_inv": "ℓ2 inv",
    "smooth": "Smooth",
    "trojan_sq": "Trojan SQ",
    "trojan_wm": "Trojan WM",
    "all_to_all": "All to all",
    "sig": "SIG",
    "wanet": "WaNet",
}

HOLDS, IN_PART, DOES_NOT, UNDECIDED = "holds", "holds in part", "does not hold here", "undecided"
"""The verdicts on a claim of the paper's."""

METRIC_NAMES = {"acc": "ACC", "asr": "ASR", "ra": "RA", "der": "DER", "error_gap": "Error gap"}


def defense_name(name: str) -> str:
    return _DEFENSES.get(name, name)


def metric_name(key: str) -> str:
    """A figure's heading; that of an accuracy under attack names the radius: ``Under PGD 0.5``."""
    kind, _, radius = key.partition(" ")
    return METRIC_NAMES.get(key) or (f"Under PGD {radius}" if kind == "evasion_accuracy" else key)


def attack_name(name: str) -> str:
    """``BadNets (side 5)`` of ``badnets (side 5)``; what nobody knows as it is."""
    trigger, bracket, settings = name.partition(" (")
    return _ATTACKS.get(trigger, trigger) + bracket + settings


def target_name(target: str) -> str:
    return "all to all" if target == "all_to_all" else target


def text_of(value: Any) -> str:
    """A setting's value: ``true``, ``null``, numbers without needless digits, anything else as it is."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A rate in [0, 1] as a bare percentage, ``–`` if unknown."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def points(share: float) -> str:
    """A difference of rates: ``4.0 points``."""
    return f"{percent(share)} points"


def percent_range(low: float | None, high: float | None, digits: int = 1) -> str:
    return "" if low is None or high is None else f"{percent(low, digits)}–{percent(high, digits)}"


def ratio_name(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:g} %"


def plain(value: float | None) -> str:
    """A count or a radius."""
    return "–" if value is None else f"{value:,.0f}" if value == int(value) else f"{value:g}"


def seconds_name(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def count_name(value: float | None) -> str:
    """A large count with a unit: 12,345 becomes 12.3 k."""
    if value is None:
        return "–"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.1f} {unit}"
    return f"{value:,.0f}"


def bytes_name(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.1f} MiB"
