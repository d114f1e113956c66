"""Writes small data sets of label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

HEIGHT, WIDTH = 48, 64
NAMES = ("red", "green", "blue")
UNKNOWN = 255


def blocks(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An image of colored blocks ``(H, W, 3)``, and the class of each pixel: its brightest channel, or 255."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, (HEIGHT // 8, WIDTH // 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    pixels = draw.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[np.arange(HEIGHT)[:, None], np.arange(WIDTH), labels] += 180
    labels[:4, :8] = UNKNOWN
    return pixels, labels


def write_pair(picture: Path, mask: Path, seed: int) -> None:
    pixels, labels = blocks(seed)
    for path, values in ((picture, pixels), (mask, labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)


def write_semantic(root: Path, images: int = 6) -> Path:
    """``images/{train,val}/*.png``, ``masks/{train,val}/*.png`` and ``classes.txt``."""
    for start, part in ((0, "train"), (100, "val")):
        for i in range(images):
            write_pair(root / f"images/{part}/{i:02}.png", root / f"masks/{part}/{i:02}.png", start + i)
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root
