"""labelme JSON files, one per image."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typing_extensions import Self

from focalnet.data.formats.object_set import (
    ObjectSet,
    Shape,
    WrittenImage,
    box_shape,
    ellipse,
    polygon_shape,
    read_json,
    split_of,
)
from focalnet.data.images import list_folder
from focalnet.errors import DataError


class LabelmeSet(ObjectSet):
    """A folder with a JSON file per image, beside the images or in a separate folder, with or without splits.

    Polygons, rectangles, circles and masks are objects; shapes of one image with one ``group_id`` and label are one
    object. An image with points or lines is refused: they are not objects.
    """

    format = "labelme"

    @classmethod
    def find(cls, path: Path) -> Self | None:
        if not path.is_dir():
            return None
        first = next((file for pattern in ("*.json", "*/*.json", "*/*/*.json") for file in path.glob(pattern)), None)
        if first is None:
            return None
        content = read_json(first)
        known = isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content
        return cls(path) if known else None

    @property
    def splits(self) -> Mapping[str, Path]:
        folders = sorted({file.relative_to(self.root).parts[0] for file in self._files})
        return {name: self.root / name for name in folders if split_of(name)}

    def images(self, split: str | None) -> list[WrittenImage]:
        folder = self.root if split is None else self.root / split
        return [self._read(file) for file in self._files if file.is_relative_to(folder)]

    @cached_property
    def _files(self) -> list[Path]:
        return list_folder(self.root, (".json",))

    def _read(self, file: Path) -> WrittenImage:
        content = read_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise DataError(f"{file}: is not labelme's: it has no list of shapes")
        name = content.get("imagePath")
        image = WrittenImage(self.image_of(file, name if isinstance(name, str) else None), source=str(file))
        height, width = content.get("imageHeight"), content.get("imageWidth")
        if isinstance(height, int) and isinstance(width, int):
            image.size = height, width
        for number, entry in enumerate(content["shapes"], start=1):
            shape = _labelme_shape(entry, image.size)
            if isinstance(shape, str):
                image.problem = image.problem or f"shape {number} {shape}"
            else:
                image.shapes.append(shape)
        return image


def _labelme_shape(entry: Any, size: tuple[int, int] | None) -> Shape | str:
    """Converts a shape; returns the object, or the problem as text."""
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(label, str) or not label:
        return "has no label"
    kind, more = entry.get("shape_type") or "polygon", {"group": entry.get("group_id")}
    try:
        points = [(float(x), float(y)) for x, y in entry.get("points") or ()]
    except (TypeError, ValueError):
        return "has points that are not pairs of numbers"
    if kind == "polygon" and len(points) >= 3:
        return polygon_shape(label, points, **more)
    if kind == "rectangle" and len(points) >= 2:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return box_shape(label, (min(xs), min(ys)), (max(xs), max(ys)), **more)
    if kind == "circle" and len(points) == 2:
        radius = float(np.hypot(points[1][0] - points[0][0], points[1][1] - points[0][1]))
        return polygon_shape(label, ellipse(points[0], (radius, radius)), **more)
    if kind == "mask" and len(points) == 2 and size is not None:
        bitmap = _pasted(entry.get("mask"), points[0], size)
        left_top, right_bottom = points[0], (points[1][0] + 1, points[1][1] + 1)  # the last pixel is one of it
        shape = box_shape(label, left_top, right_bottom)
        return "has a mask that cannot be read" if bitmap is None else Shape(label, shape.box, bitmap=bitmap)
    return f"is a {kind} of {len(points)} points, which is not an object"


def _pasted(text: Any, corner: tuple[float, float], size: tuple[int, int]) -> Any:
    """Decodes a mask (a PNG file in base64) and pastes it into an empty image; None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as png:
            part = np.asarray(png.convert("L")) > 0
    except (TypeError, ValueError, OSError, binascii.Error, Image.DecompressionBombError):
        return None
    whole = np.zeros(size, dtype=bool)
    left, top = (round(value) for value in corner)
    if left < 0 or top < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        return None
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    return whole
