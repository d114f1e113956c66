"""Writes the data of the stored runs: a folder ``data`` for training, and ``images`` for prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.coco import write_coco
from tests.data.panoptic import write_panoptic
from tests.data.semantic import blocks, write_semantic

RUNS = ("classification", "detection", "instance", "semantic", "panoptic")


def write_data(run: str, folder: Path) -> None:
    """Writes the training data of a run, and the images whose predictions are compared, to ``folder``."""
    if run == "classification":
        _write_classes(folder / "data")
    elif run == "semantic":
        write_semantic(folder / "data", images=4)
    elif run == "panoptic":
        write_panoptic(folder / "data", images=4)
    else:
        write_coco(folder / "data", images=5)
    (folder / "images").mkdir()
    for number, name in enumerate(("a", "b")):
        Image.fromarray(blocks(1000 + number)[0]).save(folder / "images" / f"{name}.png")


def _write_classes(root: Path) -> None:
    for split, start in (("train", 0), ("val", 100)):
        for label, name in enumerate(("ant", "bee", "cat", "dog", "elk", "fox")):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                draw = np.random.default_rng(start + 10 * label + i)
                pixels = draw.integers(0, 90, (36, 40, 3), dtype=np.uint8)
                pixels[6 * label : 6 * label + 6] += 120
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
