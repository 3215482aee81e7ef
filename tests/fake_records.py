"""Records that look like a sweep's, made without running one: for the report's tests and for looking at it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.cells import content_hash

TRAINING = {"epochs": 30, "batch_size": 256, "peak_lr": 0.003, "weight_decay": 0.0, "augment": "none"}


def noise(*parts: object) -> float:
    """A fixed number in [-1, 1] for ``parts``."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**31 - 1


def cell(name: str = "ibau", /, **changes: Any) -> dict[str, Any]:
    """A cell with every default filled in, as it stands in a record."""
    settings: dict[str, dict[str, Any]] = {
        "ibau": {"recipe": "reference", "rounds": 3},
        "fine_tuning": {"epochs": 10, "lr": 0.001},
    }
    return {
        "dataset": "digits",
        "model": "simplified_vgg",
        "attack": "badnets",
        "target": 8,
        "poison_ratio": 0.05,
        "training": TRAINING,
        "victim": None,
        "min_asr": 0.9,
        "clean_size": 150,
        "radius": 10.0 if name == "ibau" else None,
        "defense": {"name": name, **settings.get(name, {})},
        "time_limit": None,
        "seed": 0,
    } | changes


def record(tree: Mapping[str, Any], acc: float = 0.97, asr: float = 0.05, **changes: Any) -> dict[str, Any]:
    """An ``ok`` record of the cell ``tree``."""
    rounds = tree["defense"].get("rounds") or 0
    trace = [
        {"acc": acc - 0.01 / k, "asr": asr + (0.98 - asr) * 0.4**k, "delta_norm": 9.9} for k in range(1, rounds + 1)
    ]
    size = tree["clean_size"] or 1
    return {
        "schema": 1,
        "id": content_hash(tree),
        "cell": dict(tree),
        "status": "ok",
        "reason": None,
        "victim": {"id": "0123456789abcdef", "acc": 0.988, "asr": 0.981, "ra": 0.015, "seconds": 9.7},
        "acc": acc,
        "acc_interval": [acc - 0.012, min(1.0, acc + 0.009)],
        "asr": asr,
        "asr_interval": [max(0.0, asr - 0.015), min(1.0, asr + 0.02)],
        "ra": max(0.0, 0.99 - asr - 0.02),
        "ra_interval": [max(0.0, 0.95 - asr), min(1.0, 1.0 - asr)],
        "der": 0.5 + max(0.0, 0.981 - asr) / 2 - max(0.0, 0.988 - acc) / 2,
        "error_gap": 0.01 + 0.002 * abs(noise(tree)),
        "seconds": {"none": 0.0001, "fine_tuning": 1.2}.get(tree["defense"]["name"], 3.1) * (1 + size / 300),
        "seconds_to_effect": None if asr >= 0.2 else 1.3,
        "peak_memory_bytes": 83_000_000 + 90_000 * size,
        "passes": {"forward": 40 * size, "backward": 31 * size},
        "rounds": trace,
        "provenance": {
            "commit": "9baa1db5c0ffee", "dirty": False, "python": "3.11.2", "torch": "2.6.0", "package": "0.1.0",
            "device": "AMD EPYC 7B13 (2 CPUs)", "threads": 1, "cells_beside": 1, "started": "2025-01-02T03:04:05Z",
        },
    } | changes  # fmt: skip


def unscored(tree: Mapping[str, Any], status: str, reason: str) -> dict[str, Any]:
    names = ("acc", "asr", "ra", "der", "error_gap", "seconds", "seconds_to_effect", "peak_memory_bytes", "passes")
    blank = {name: None for name in (*names, "acc_interval", "asr_interval", "ra_interval")}
    return record(tree) | blank | {"status": status, "reason": reason, "rounds": []}


def sensitivity(seeds: int = 1) -> Iterator[dict[str, Any]]:
    """Three defenses by 3 poison ratios, 3 clean sizes and 3 radii: 45 records a seed, two of them not scored."""
    for seed in range(seeds):
        for ratio in (0.02, 0.05, 0.2):
            for size in (50, 150, 450):
                shared = {"poison_ratio": ratio, "clean_size": size, "seed": seed}
                jitter = noise(ratio, size, seed)
                yield record(cell("none", **shared), 0.988 + 0.003 * jitter, 0.982 + 0.01 * jitter)
                tuned = 0.93 - 0.3 * math.log10(size / 50) + 0.04 * jitter
                yield record(cell("fine_tuning", **shared), 0.975 - 0.9 / size + 0.006 * jitter, tuned)
                for radius in (2.5, 5.0, 10.0):
                    tree = cell("ibau", radius=radius, **shared)
                    if (size, radius, ratio) == (50, 10.0, 0.02):
                        reason = "the loss became NaN in round 2 (inner.py:88 in ascend)"
                        yield unscored(tree, "diverged", reason)
                    elif (size, radius, ratio) == (450, 2.5, 0.02):
                        yield unscored(tree, "failed", "RuntimeError: out of memory (unlearning.py:120 in outer_step)")
                    else:
                        asr = 0.6 * math.exp(-radius / 3) * (150 / size) ** 0.4 + 0.04 * abs(noise(tree))
                        acc = 0.982 - 0.35 / size - 0.002 * radius + 0.004 * noise(radius, jitter)
                        yield record(tree, acc, asr)


def write(folder: Path, records: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(each) for each in records]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
