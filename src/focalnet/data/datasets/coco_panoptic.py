"""COCO's panoptic form: a JSON that says what the segments are, and a PNG for each image that says where.

A pixel's colour is its segment's id, R + 256 G + 65536 B; 0 is no segment ("void"). The form is described at
cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data import images
from focalnet.data.datasets.coco import (
    Annotated,
    Annotation,
    Problem,
    Report,
    are_numbers,
    category_problem,
    image_problem,
    is_whole,
    load,
    unique,
)
from focalnet.data.datasets.pictures import Pictures
from focalnet.errors import DataError, ImageError

LARGEST_ID = 2**24 - 1  # what three bytes hold


@dataclass(frozen=True)
class PanopticFile:
    """What a panoptic annotation file says. Labels count from 0: things by category id, then stuff by category id.

    Args:
        path: of the file.
        class_names: by label.
        category_ids: by label.
        num_things: so many of the first labels are objects; the others are stuff.
        images: in the order of the file; their ``annotations`` are the segments: ``id``, ``category_id``, ``iscrowd``.
        maps: names of the PNG files, by image id.
        problems: what was left out, or does not add up.
    """

    path: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_things: int
    images: list[Annotated]
    maps: dict[int, str]
    problems: list[Problem]

    def label_of(self) -> dict[int, int]:
        """Label by category id."""
        return {category: label for label, category in enumerate(self.category_ids)}


def is_panoptic(path: Path) -> bool:
    """Whether an annotation file is in panoptic form.

    Raises:
        DataError: it is no annotation file at all.
    """
    annotations = load(path)["annotations"]
    return any(isinstance(entry, dict) and "segments_info" in entry for entry in annotations)


def read_panoptic(path: Path) -> PanopticFile:
    """Reads a panoptic annotation file. An image is left out if anything is wrong with its entries, see ``problems``.

    Raises:
        DataError: the file is no such JSON, or has no image or category that can be used.
    """
    content = load(path)
    problems: list[Problem] = []

    def report(entry: str, what: str, fatal: bool = True) -> None:
        problems.append(Problem(str(path), entry, what, fatal))

    categories = unique(content["categories"], "category", _category_problem, report)
    listed = unique(content["images"], "image", image_problem, report)
    annotated: list[Annotated] = []
    maps: dict[int, str] = {}
    for number, entry in _by_image(content["annotations"], listed, report).items():
        segments = _segments(entry, _name(listed[number]), categories, report)
        if segments is not None:
            size = listed[number]["height"], listed[number]["width"]
            annotated.append(Annotated(number, listed[number]["file_name"], *size, segments))
            maps[number] = entry["file_name"]
    if not annotated or not categories:
        reason = f"; {problems[0].entry}: {problems[0].what}" if problems else ""
        raise DataError(f"{path}: no usable {'category' if annotated else 'image'} in it{reason}")
    ids = sorted(categories, key=lambda number: (not categories[number]["isthing"], number))
    names = tuple(str(categories[number]["name"]) for number in ids)
    things = sum(bool(categories[number]["isthing"]) for number in ids)
    return PanopticFile(path, names, tuple(ids), things, annotated, maps, problems)


def _by_image(entries: list[Any], listed: Mapping[int, Any], report: Report) -> dict[int, Mapping[str, Any]]:
    """The entries of ``annotations`` by image; none for an image that has none, or two."""
    found: dict[int, Mapping[str, Any]] = {}
    twice: set[int] = set()
    for place, entry in enumerate(entries):
        number = entry.get("image_id") if isinstance(entry, dict) else None
        if not (is_whole(number) and number in listed):
            report(f"annotation number {place + 1}", f"its image_id {number!r} is not among the file's images")
        elif number in found:
            twice.add(number)
        else:
            found[number] = entry
    for number, image in listed.items():
        if number not in found:
            report(_name(image), "has no entry in annotations")
        elif number in twice:
            report(_name(image), "has more than one entry in annotations")
            del found[number]
    return found


def _name(image: Mapping[str, Any]) -> str:
    return f"image {image['id']} ({image['file_name']})"


def _segments(
    entry: Mapping[str, Any], image: str, categories: Mapping[int, Any], report: Report
) -> list[Annotation] | None:
    """The segments of an image, each with ``iscrowd``; None if anything is wrong with one of them."""
    file, segments = entry.get("file_name"), entry.get("segments_info")
    if not isinstance(file, str) or not file or "\0" in file:
        report(image, "its entry in annotations has no file_name, that of the PNG")
        return None
    if not isinstance(segments, list):
        report(image, 'its entry in annotations has no list "segments_info"')
        return None
    found = unique(
        segments,
        "segment",
        lambda segment: _segment_problem(segment, categories),
        lambda what, problem: report(f"{image}, {what}", problem),
    )
    return [{"iscrowd": 0, **segment} for segment in found.values()] if len(found) == len(segments) else None


def _category_problem(entry: Mapping[str, Any]) -> str | None:
    if entry.get("isthing") not in (0, 1):
        return f"its isthing {entry.get('isthing')!r} is not 0 or 1"
    return category_problem(entry)


def _segment_problem(entry: Mapping[str, Any], categories: Mapping[int, Any]) -> str | None:
    if not 0 < entry["id"] <= LARGEST_ID:
        return f"its id is not between 1 and {LARGEST_ID}, and 0 is void: give it, in the JSON and in the PNG, another"
    category = entry.get("category_id")
    if not is_whole(category) or category not in categories:
        return f"its category_id {category!r} is not among the file's categories"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"its iscrowd {entry['iscrowd']!r} is not 0 or 1"
    if "area" in entry and (not are_numbers([entry["area"]]) or entry["area"] < 0):
        return f"its area {entry['area']!r} is not a number of pixels"
    return None


def read_ids(maps: Pictures, name: str, image: Annotated) -> npt.NDArray[np.int32]:
    """Which of an image's segments each pixel belongs to.

    Returns:
        ``(height, width)``: ``i + 1`` for the ``i``-th of ``image.annotations``, 0 for none.

    Raises:
        ImageError: the PNG cannot be read, has another size, or has other segments than the image.
    """
    path = maps.path(name)
    ids = _decode(maps, name)
    if ids.shape != (image.height, image.width):
        raise ImageError(
            f"{path}: has {ids.shape[1]} x {ids.shape[0]} pixels, its image {image.image_id} "
            f"{image.width} x {image.height}"
        )
    known = np.array([0] + [segment["id"] for segment in image.annotations], dtype=np.int32)
    order = np.argsort(known).astype(np.int32)
    place = np.searchsorted(known[order], ids).clip(max=len(known) - 1)
    numbers: npt.NDArray[np.int32] = order[place]
    unknown = np.unique(ids[known[numbers] != ids])
    if len(unknown):
        raise ImageError(f"{path}: has pixels of segment {unknown[0]}, which is not in its image's segments_info")
    absent = np.flatnonzero(np.bincount(numbers.ravel(), minlength=len(known))[1:] == 0)
    if len(absent):
        raise ImageError(f"{path}: has no pixel of segment {known[absent[0] + 1]}, which is in its segments_info")
    return numbers


def _decode(maps: Pictures, name: str) -> npt.NDArray[np.int32]:
    path = maps.path(name)
    try:
        content = maps.content(name)
    except (OSError, KeyError) as error:
        raise ImageError(f"{path}: cannot be read: {error}") from error
    return images.decode(content, path, _colours_to_ids)


def _colours_to_ids(png: Image.Image) -> npt.NDArray[np.int32]:
    if png.format != "PNG" or png.mode not in ("RGB", "RGBA"):
        raise ImageError(f"is a {png.format} of mode {png.mode}, not a PNG in RGB: a segment's id is its exact colour")
    channels = np.asarray(png).astype(np.int32)
    ids: npt.NDArray[np.int32] = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    return ids
