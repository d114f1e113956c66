"""Writes small panoptic data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.coco import HEIGHT, WIDTH, content, write_images, write_json

#: By id neither in order nor things first; the labels are ant, bee, grass, sky.
CATEGORIES = [
    {"id": 7, "name": "bee", "isthing": 1},
    {"id": 2, "name": "grass", "isthing": 0},
    {"id": 3, "name": "ant", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
]
VOID_ROWS = 4  # rows at the bottom


def panoptic_content(images: int = 6) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON, and ids ``(H, W)`` by PNG: sky above grass, with an ant and a bee on it, and void at the bottom."""
    objects = content(images)
    maps, annotations = {}, []
    for image in objects["images"]:
        ids = np.zeros((HEIGHT, WIDTH), np.int64)
        ids[: HEIGHT // 2], ids[HEIGHT // 2 :] = 70_000, 300
        segments = [{"id": 70_000, "category_id": 9}, {"id": 300, "category_id": 2}]
        for one in objects["annotations"]:
            if one["image_id"] == image["id"]:
                left, top, width, height = (int(v) for v in one["bbox"])
                ids[top : top + height, left : left + width] = one["id"]
                segments.append({"id": one["id"], "category_id": one["category_id"]})
        ids[-VOID_ROWS:] = 0
        for segment in segments:
            segment |= {"area": int((ids == segment["id"]).sum()), "iscrowd": 0}
        name = image["file_name"]
        maps[name] = ids
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    categories = [dict(one) for one in CATEGORIES]
    return {"images": objects["images"], "annotations": annotations, "categories": categories}, maps


def write_map(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)


def write_panoptic(root: Path, images: int = 6) -> Path:
    """``annotations/panoptic_{train,val}.json``, a folder of PNG files each, and ``{train,val}/*.png``."""
    dataset, maps = panoptic_content(images)
    for part in ("train", "val"):
        write_json(root / f"annotations/panoptic_{part}.json", dataset)
        for name, ids in maps.items():
            write_map(root / f"annotations/panoptic_{part}/{name}", ids)
        write_images(root / part, content(images))
    return root
