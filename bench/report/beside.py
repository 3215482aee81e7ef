"""The paper's figures for the setting of a record, as they stand beside ours, with what has to be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from bench import published
from bench.report.rows import Row

COPIES = {"cifar10_jpeg": "cifar10", "gtsrb_26640": "gtsrb"}
"""Data sets of ours that are a softer or a smaller copy of one of the paper's."""

ASSUMED, COPY = "†", "‡"
SIGNS = {
    ASSUMED: "The model came as a checkpoint: that its poison ratio is the paper's 20 %, and that a trigger file named "
    "like one of the paper's triggers is that trigger, is assumed.",
    COPY: "Published on the original data set; ours were measured on a copy of it that is softer (JPEG) or smaller.",
}
NOTE = f"“paper”: published for the same setting ({published.SOURCE}); what it counts differs a little, see the end."
MEANING = (
    f"the figure published for the same setting ({published.SOURCE}). The authors' code counts in its ASR also images "
    "of the target class and images the defense trained on; ours counts neither. The paper's I-BAU stands in Table 1, "
    "and in the CIFAR-10 half of Table 3, at the round whose ACC is about that of the most effective baseline, in "
    "Table 2 after 100 rounds; ours is what the defense returned. No spread was published."
)
ALL_TO_ALL = "all_to_all"


def original(dataset: str) -> str:
    """The paper's data set that ``dataset`` is or is a copy of; any other is itself."""
    return COPIES.get(dataset, dataset)


def attack_of(row: Row) -> str:
    """The attack case as the paper names it, ``""`` for what it does not have.

    A trigger with settings of its own is not the paper's: it keeps its own name.
    """
    attack = row.attack
    victim = row.cell.get("victim")
    trigger = victim.get("trigger") if isinstance(victim, dict) else None
    if isinstance(trigger, dict) and "image" in trigger:
        attack = PurePosixPath(str(trigger.get("image"))).stem
    if row.target == ALL_TO_ALL:
        return ALL_TO_ALL if attack == "badnets" else ""
    return attack


def signs(row: Row) -> str:
    """Why the paper's figure may not be of quite the same thing."""
    return (ASSUMED if row.cell.get("victim") else "") + (COPY if row.dataset in COPIES else "")


def one_trigger(row: Row, size: float | None) -> tuple[str, str]:
    """The paper's (ACC, ASR) for the row's setting, ``×`` where it detected no trigger, or two empty texts."""
    ratio = _ratio(row)
    if ratio is None or not _papers_case(row):
        return "", ""
    found = published.lookup(
        original(row.dataset),
        attack_of(row),
        row.defense,
        model=row.model,
        poison_ratio=ratio,
        clean_size=None if size is None else int(size),
        radius=row.radius,
    )
    return ("", "") if found is None else (_figure(found.acc, row), _figure(found.asr, row))


def multi_trigger(row: Row, trigger: str) -> tuple[str, str]:
    """Table 3's (ACC of the model, ASR of ``trigger`` or of their ``average``) where the setting is the paper's."""
    pairs = {figures.attack: figures.target for figures in row.triggers or row.triggers_before}
    wanted = {attack: str(target) for attack, target in published.TABLE_3_TARGETS.items()}
    setting = (row.model, row.poison_ratio, row.cell.get("mix") in (None, "united"))
    if pairs != wanted or setting != (published.MODEL, published.POISON_RATIO, True) or not _same_defender(row):
        return "", ""
    found = published.lookup_multi_trigger(original(row.dataset), trigger, row.defense)
    if found is None:
        return "", ""
    if not found.detected:
        return "×", "×"
    return (_figure(found.acc, row) if found.acc is not None else "", _figure(found.asr, row))


def gap(row: Row) -> str:
    """Table 7's or 8's error gap for the row's setting, or an empty text."""
    if row.defense != "ibau" or attack_of(row) != "trojan_wm" or original(row.dataset) != "cifar10":
        return ""
    if row.poison_ratio != published.POISON_RATIO or row.radius != published.RADIUS or row.clean_size is None:
        return ""
    if not _papers_case(row):
        return ""
    for each in (*published.TABLE_7, *published.TABLE_8):
        if (each.model, each.clean_size) == (row.model, int(row.clean_size)):
            return f"{100 * each.gap:.2f}{signs(row)}"
    return ""


def effect(rows: Sequence[Row]) -> str:
    """Table 6's seconds for the defense and data set of ``rows``, or an empty text where a row's setting is another."""
    seconds = published.seconds_to_effect(original(rows[0].dataset), rows[0].defense)
    return f"{seconds:,.2f}{signs_of(rows)}" if seconds is not None and all(map(_in_table_6, rows)) else ""


def signs_of(rows: Sequence[Row]) -> str:
    """The signs of any of them."""
    found = "".join(map(signs, rows))
    return "".join(sign for sign in SIGNS if sign in found)


def _in_table_6(row: Row) -> bool:
    setting = (row.model, _ratio(row)) == (published.MODEL, published.POISON_RATIO)
    return setting and row.target != ALL_TO_ALL and _papers_case(row) and _same_defender(row)


def _papers_case(row: Row) -> bool:
    """Whether trigger and target are a one-trigger case of the paper's (its Figure 2, or all to all)."""
    attack = attack_of(row)
    target = ALL_TO_ALL if attack == ALL_TO_ALL else str(published.TARGETS.get(attack))
    return row.target == target and not row.cell.get("clean_label")


def _same_defender(row: Row) -> bool:
    ignores_set = row.defense in published.IGNORES_CLEAN_SET or row.clean_size in (None, published.CLEAN_SIZE)
    return ignores_set and (row.defense != "ibau" or row.radius == published.RADIUS)


def _ratio(row: Row) -> float | None:
    """A model brought by checkpoint does not tell its poison ratio; the paper's is assumed."""
    return published.POISON_RATIO if row.cell.get("victim") else row.poison_ratio


def _figure(value: float | None, row: Row) -> str:
    return "×" if value is None else f"{100 * value:.2f}{signs(row)}"
