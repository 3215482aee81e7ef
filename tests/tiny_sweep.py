"""A sweep small enough for tests: three classes of 16 x 16 images, timm's smallest network, two seconds of work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

DATASET = "image_folder:tiny?size=16"
MODEL = "test_resnet"
CLASSES = 3
TEST_IMAGES = 16
"""Of each class; half of them all are the defender's pool."""


def write_images(root: Path) -> None:
    """``root/tiny``: noisy images whose mean colour tells the class."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", TEST_IMAGES)):
        for label in range(CLASSES):
            folder = root / "tiny" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (16, 16, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def tree(**changes: Any) -> dict[str, Any]:
    """A sweep of 2 victims and 6 distinct cells (of 8 combinations); ``changes`` replace top-level keys."""
    return {
        "name": "tiny",
        "cell": {
            "dataset": DATASET,
            "model": MODEL,
            "attack": "badnets",
            "target": 1,
            "min_asr": 0.0,
            "training": {"epochs": 1, "batch_size": 32},
            "clean_size": 9,
        },
        "grid": {
            "poison_ratio": [0.1, 0.3],
            "radius": [0.5, 2.0],
            "defense": ["none", {"name": "ibau", "rounds": 1}],
        },
        "resources": {"cpu": 1, "gpu": 0},
        **changes,
    }


def write(folder: Path, content: dict[str, Any] | str, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path
