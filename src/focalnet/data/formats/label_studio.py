"""Label Studio exports in the formats "JSON" and "JSON-MIN"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from focalnet.data.formats.object_set import (
    ObjectSet,
    Shape,
    WrittenImage,
    ellipse,
    polygon_shape,
    read_json,
    split_of,
    turned,
)

#: What the list of a region's classes is called, by its form.
_LABELS = {
    "rectanglelabels": "rectangle",
    "polygonlabels": "polygon",
    "ellipselabels": "ellipse",
    "brushlabels": "brush",
    "labels": "rectangle",
}


class LabelStudioSet(ObjectSet):
    """A JSON file with a list of tasks: in the root, or one for each split (``train.json``, ``val.json``).

    Places are shares of the image's sides, in percent, and turned boxes are polygons. Tasks without annotations
    are left out, which is said; one that several have annotated differently cannot be used.
    """

    format = "Label Studio"
    measures = True

    def __init__(self, root: Path, files: Mapping[str | None, Path]) -> None:
        super().__init__(root)
        self._by_split = files

    @classmethod
    def find(cls, path: Path) -> Self | None:
        if path.is_file():
            return cls(path.parent, {None: path}) if path.suffix == ".json" and _tasks(path) else None
        files = [file for file in sorted(path.glob("*.json")) if _tasks(file)]
        by_split: dict[str | None, Path] = {file.stem: file for file in files if split_of(file.stem)}
        if by_split:
            return cls(path, by_split)
        return cls(path, {None: files[0]}) if len(files) == 1 else None

    @property
    def splits(self) -> Mapping[str, Path]:
        return {name: file for name, file in self._by_split.items() if name is not None}

    def images(self, split: str | None) -> list[WrittenImage]:
        files = list(self._by_split.values()) if split is None else [self._by_split[split]]
        tasks = [(file, task) for file in files for task in _tasks(file) or ()]
        names = [_image(task) for _, task in tasks]
        places = {name: self._place(name) for name in dict.fromkeys(names)}
        sizes = self.sizes(place for place in places.values() if place is not None)
        found: list[WrittenImage] = []
        for (file, task), name in zip(tasks, names, strict=True):
            regions = _regions(task)
            if regions is None:
                continue
            place = places[name]
            image = WrittenImage(place or name, source=f"{file}: task {task.get('id', '')}".strip())
            size = sizes.get(place or "")
            if isinstance(size, tuple):
                image.size = size
                _add(image, regions, size)
            else:
                image.problem = size or f"its image {name[:100]} is not below {self.root}"
            found.append(image)
        if len(found) < len(tasks):
            self.remarks.append(f"{len(tasks) - len(found)} of {len(tasks)} tasks are not annotated, and left out")
        return found

    def _place(self, name: str) -> str | None:
        """Finds an image below the root, whose name may lack the prefix that Label Studio adds on upload."""
        path = PurePosixPath(name.replace("\\", "/"))
        short = re.sub(r"^[0-9a-f]{8}-", "", path.name)
        return self.matched([name])[name] or self._short.get(short)

    @cached_property
    def _short(self) -> dict[str, str]:
        """Images by file name; ambiguous names are left out."""
        names = [PurePosixPath(file).name for file in self.image_files]
        return {name: file for name, file in zip(names, self.image_files, strict=True) if names.count(name) == 1}


def _tasks(file: Path) -> list[dict[str, Any]] | None:
    """The tasks in a file; None if the file is not from Label Studio."""
    content = read_json(file)
    tasks = content if isinstance(content, list) else []
    known = tasks and all(isinstance(task, dict) and _image(task) and _is_task(task) for task in tasks)
    return tasks if known else None


def _is_task(task: Mapping[str, Any]) -> bool:
    return (
        isinstance(task.get("annotations"), list) or "annotation_id" in task or any(map(_is_region_list, task.values()))
    )


def _image(task: Mapping[str, Any]) -> str:
    """The URL of the image of a task: the value called image, or the only value that looks like an image file."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    likely = [v for v in texts.values() if re.search(r"\.(jpe?g|png|bmp|tiff?|webp|gif)(\?|$)", v, re.IGNORECASE)]
    return texts.get("image") or texts.get("img") or (likely[0] if len(likely) == 1 else "")


def _is_region_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(r, dict) and "original_width" in r for r in value)


def _regions(task: Mapping[str, Any]) -> list[Any] | None:
    """The regions of a task; None if it is not annotated, the problem as text if its annotations differ."""
    if "annotations" not in task:
        return [region for value in task.values() if _is_region_list(value) for region in value]
    given = [one for one in task["annotations"] if isinstance(one, dict) and not one.get("was_cancelled")]
    chosen = [one for one in given if one.get("ground_truth")] or given
    if not chosen:
        return None
    if len(chosen) > 1 and any(one.get("result") != chosen[0].get("result") for one in chosen):
        return [f"{len(chosen)} annotations that differ: mark one as ground truth"]
    result = chosen[0].get("result")
    return result if isinstance(result, list) else []


def _add(image: WrittenImage, regions: list[Any], size: tuple[int, int]) -> None:
    for region in regions:
        if isinstance(region, str):
            image.problem = f"has {region}"
            return
        for shape in _shapes(region, size):
            if isinstance(shape, str):
                image.problem = image.problem or shape
            else:
                image.shapes.append(shape)


def _shapes(region: Any, size: tuple[int, int]) -> Iterator[Shape | str]:
    """Yields the object of a region, or the problem as text; nothing for a region about the whole image."""
    value = region.get("value", region) if isinstance(region, dict) else {}
    key = next((key for key in _LABELS if key in value), None)
    if key is None:
        if any(name in value for name in ("keypointlabels", "rle", "vector")) or "x" in value:
            yield f"has a region with {', '.join(sorted(value))[:80]}, which is not a labeled box, polygon or mask"
        return
    labels = value[key]
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
        yield f"has a region with the classes {labels!r:.60}, and an object has one"
        return
    if "rle" in value or _LABELS[key] == "brush":
        try:
            bitmap = brush_mask(value["rle"], size)
        except (KeyError, TypeError, ValueError) as error:
            yield f"has a region of brushlabels whose mask cannot be read: {error}"
            return
        if bitmap.any():  # a stroke that was erased completely leaves no object
            yield _of_bitmap(labels[0], bitmap)
        return
    try:
        yield _shape(labels[0], value, _LABELS[key], size)
    except (KeyError, TypeError, ValueError):
        yield "has a region with coordinates that are not numbers, or without some"


def _shape(label: str, value: Mapping[str, Any], form: str, size: tuple[int, int]) -> Shape:
    height, width = size
    if form == "polygon" or "points" in value:
        return polygon_shape(label, [(x / 100 * width, y / 100 * height) for x, y in value["points"]])
    x, y, angle = value["x"] / 100 * width, value["y"] / 100 * height, float(value.get("rotation") or 0)
    if form == "ellipse" or "radiusX" in value:
        corners = ellipse((x, y), (value["radiusX"] / 100 * width, value["radiusY"] / 100 * height))
        return polygon_shape(label, turned(corners, angle, (x, y)))
    w, h = value["width"] / 100 * width, value["height"] / 100 * height
    if not angle:
        return Shape(label, (x, y, w, h))
    return polygon_shape(label, turned([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], angle, (x, y)))


def _of_bitmap(label: str, bitmap: npt.NDArray[np.bool_]) -> Shape:
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    top, left = int(rows[0]), int(columns[0])
    return Shape(label, (left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top), bitmap=bitmap)


def brush_mask(code: Any, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decodes the mask of a brush, ``(H, W)``: where the fourth channel of an image of four channels is not 0.

    The code is that of the package ``@thi.ng/rle-pack``: a stream of bits with the number of values (32 bits), the bits
    of a value less one (5), and four sizes of run lengths, less one (4 each). Each run has a bit for "one value,
    repeated", which of the sizes its length has (2), its length less one, and its value, or all of its values.

    Args:
        code: bytes as numbers.
        size: height and width of the image.

    Raises:
        ValueError: it is not such a code, or of an image of another size.
    """
    if not isinstance(code, list) or not all(type(byte) is int and 0 <= byte <= 255 for byte in code):
        raise ValueError("its rle is not a list of bytes")
    bits = "".join(f"{byte:08b}" for byte in code)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError("its rle ends too early")
        return int(bits[place - count : place], 2)

    total = read(32)
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"its rle has {total} values, an image of {size[0]} x {size[1]} pixels has four each")
    width, lengths = read(5) + 1, [read(4) + 1 for _ in range(4)]
    if width > 8:
        raise ValueError(f"its rle has values of {width} bits")
    values, at = np.zeros(total, np.uint8), 0
    while at < total:
        repeated = read(1)
        end = at + 1 + read(lengths[read(2)])
        if end > total:
            raise ValueError("its rle has more values than it says")
        values[at:end] = read(width) if repeated else [read(width) for _ in range(end - at)]
        at = end
    mask: npt.NDArray[np.bool_] = values.reshape(*size, 4)[..., 3] > 0
    return mask
