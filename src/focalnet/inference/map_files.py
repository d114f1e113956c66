"""Maps as files that other programs read: PNGs of labels, and COCO's panoptic form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from focalnet.results import PanopticMap, SemanticMap
from focalnet.samples import IGNORED
from focalnet.visualize import palettes, save_image


def save_labels(result: SemanticMap, path: Path) -> Path:
    """Writes the class of each pixel as a PNG: its value is the class, 255 is none, colours are those of drawings.

    With more than 255 classes it has 16 bits and no colours, and 255 is a class.
    """
    if max(len(result.names), int(result.labels.max()) + 1) > IGNORED + 1:
        return save_image(Image.fromarray(result.labels.cpu().numpy().astype(np.uint16)), path)
    picture = Image.fromarray(result.labels.cpu().numpy().astype(np.uint8))
    colours = palettes.regions().copy()
    colours[IGNORED] = palettes.rgb(palettes.NOTHING)
    picture.putpalette(colours.tobytes())
    return save_image(picture, path)


def save_segments(result: PanopticMap, path: Path) -> Path:
    """Writes the segment of each pixel as a PNG in COCO's form: its id is R + 256 G + 65536 B, 0 is none."""
    bytes_HW4 = result.ids.cpu().numpy()[..., None].astype("<u4").view(np.uint8)
    return save_image(Image.fromarray(np.ascontiguousarray(bytes_HW4[..., :3])), path)


def panoptic_entry(result: PanopticMap, image_id: int, file_name: str, category_ids: Sequence[int]) -> dict[str, Any]:
    """What COCO's panoptic JSON says of an image: which segments are in its PNG.

    Args:
        result: with or without its picture.
        image_id: of the image.
        file_name: of the PNG.
        category_ids: by label.
    """
    ids = result.ids.cpu().numpy()
    segments = []
    for segment in result.segments:
        rows, columns = np.nonzero(ids == segment.id)
        if len(rows):
            left, top = int(columns.min()), int(rows.min())
            segments.append({
                "id": segment.id,
                "category_id": category_ids[segment.label],
                "area": len(rows),
                "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                "iscrowd": 0,
            })  # fmt: skip
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}
