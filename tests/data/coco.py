"""Writes small detection data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 80
CATEGORIES = [{"id": 7, "name": "bee"}, {"id": 3, "name": "ant"}]  # ids neither start at 1 nor are in order


def annotation(number: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    left, top, width, height = box
    corners = [left, top, left + width, top, left + width, top + height, left, top + height]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [corners],
        **more,
    }


def content(images: int = 6) -> dict[str, Any]:
    """Each image has a bright rectangle (an ant) and a darker one (a bee); the last has no object."""
    draw = np.random.default_rng(0)
    listed = [
        {"id": 10 * i, "file_name": f"{i:02}.png", "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)
    ]
    annotations = []
    for image in listed[:-1]:
        for category, left in ((3, 2), (7, 42)):
            width, height = (int(v) for v in draw.integers(14, 34, 2))
            box = [left + int(draw.integers(0, 36 - width + 1)), int(draw.integers(0, HEIGHT - height)), width, height]
            annotations.append(annotation(len(annotations) + 1, image["id"], category, [float(v) for v in box]))
    return {"images": listed, "annotations": annotations, "categories": [dict(one) for one in CATEGORIES]}


def write_images(folder: Path, dataset: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in dataset["images"]:
        pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
        for one in dataset["annotations"]:
            if one["image_id"] == image["id"]:
                left, top, width, height = (int(v) for v in one["bbox"])
                pixels[top : top + height, left : left + width] = (
                    (240, 230, 60) if one["category_id"] == 3 else (90, 20, 150)
                )
        Image.fromarray(pixels).save(folder / image["file_name"])


def write_json(path: Path, dataset: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataset))
    return path


def write_coco(root: Path, images: int = 6) -> Path:
    """``annotations/instances_{train,val}.json`` and ``{train,val}/*.png``, both splits the same."""
    dataset = content(images)
    for part in ("train", "val"):
        write_json(root / f"annotations/instances_{part}.json", dataset)
        write_images(root / part, dataset)
    return root
