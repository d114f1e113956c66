"""COCO's panoptic format: a JSON that says what the segments are, and a PNG for each image that says where.

A pixel's color is its segment's id, R + 256 G + 65536 B; 0 means no segment ("void"). The format is described at
cocodataset.org/#format-data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data import images as decoding
from focalnet.data.formats.coco import (
    Annotated,
    Annotation,
    Report,
    are_numbers,
    category_problem,
    image_problem,
    is_whole,
    load,
    read_image,
    unique,
)
from focalnet.data.formats.problems import Problem
from focalnet.data.readers.image_files import ImageFiles, find_images, find_maps
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
    """Whether an annotation file is in panoptic format.

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


def read_ids(maps: ImageFiles, name: str, image: Annotated) -> npt.NDArray[np.int32]:
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


def _decode(maps: ImageFiles, name: str) -> npt.NDArray[np.int32]:
    path = maps.path(name)
    try:
        content = maps.content(name)
    except (OSError, KeyError) as error:
        raise ImageError(f"{path}: cannot be read: {error}") from error
    return decoding.decode(content, path, _colors_to_ids)


def _colors_to_ids(png: Image.Image) -> npt.NDArray[np.int32]:
    if png.format != "PNG" or png.mode not in ("RGB", "RGBA"):
        raise ImageError(f"is a {png.format} of mode {png.mode}, not a PNG in RGB: a segment's id is its exact color")
    channels = np.asarray(png).astype(np.int32)
    ids: npt.NDArray[np.int32] = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    return ids


@dataclass(frozen=True)
class CheckedPanoptic:
    """One split of a panoptic data set.

    Args:
        annotated: the annotations; images of which something is missing or does not fit are left out.
        images: where the images are.
        maps: where the PNG files of segments are.
        problems: all that was found.
    """

    annotated: PanopticFile
    images: ImageFiles
    maps: ImageFiles
    problems: list[Problem]

    def segments(self) -> dict[str, int]:
        """Number of segments by class name, crowds left out."""
        names = dict(zip(self.annotated.category_ids, self.annotated.class_names, strict=True))
        counts = dict.fromkeys(self.annotated.class_names, 0)
        for image in self.annotated.images:
            for segment in image.annotations:
                counts[names[segment["category_id"]]] += not segment["iscrowd"]
        return counts


def check_panoptic(
    root: Path,
    annotations: Path,
    *,
    images: str | None = None,
    maps: str | None = None,
    open_maps: bool = True,
    decode: bool = False,
) -> CheckedPanoptic:
    """Reads a split's annotations and looks for its images and PNG files.

    Args:
        root: the folder of the data set.
        annotations: the annotation file.
        images: the folder or tar file of the images, relative to the root; default: looked for.
        maps: that of the PNG files of segments; default: looked for.
        open_maps: open every PNG, and compare its size and its segments with what is written of them.
        decode: open every image, too, and compare its size.

    Raises:
        DataError: the annotations cannot be read at all, or no image or no PNG is found.
    """
    annotated = read_panoptic(annotations)
    files = find_images(root, annotations, [image.file_name for image in annotated.images], images)
    places = find_maps(root, annotations, list(annotated.maps.values()), maps)

    def problems(image: Annotated) -> list[Problem]:
        name = f"image {image.image_id} ({image.file_name})"
        found = _problems(image, annotated.maps[image.image_id], files, places, open_maps=open_maps, decode=decode)
        return [Problem(str(annotations), name, what, fatal) for what, fatal in found]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without holding the interpreter
        found = list(pool.map(problems, annotated.images))
    whole = [not any(one.fatal for one in some) for some in found]
    annotated.images[:] = [image for image, usable in zip(annotated.images, whole, strict=True) if usable]
    return CheckedPanoptic(annotated, files, places, annotated.problems + [one for some in found for one in some])


def _problems(
    image: Annotated, name: str, files: ImageFiles, maps: ImageFiles, *, open_maps: bool, decode: bool
) -> Iterator[tuple[str, bool]]:
    """What is wrong with an image, and whether it is of no use for that."""
    if image.file_name not in files:
        yield f"no such file {files.path(image.file_name)}", True
    elif decode:
        try:
            read_image(files, image)
        except ImageError as error:
            yield str(error), True
    if name not in maps:
        yield f"no such file {maps.path(name)}", True
    elif open_maps:
        try:
            ids = read_ids(maps, name, image)
        except ImageError as error:
            yield str(error), True
            return
        areas = np.bincount(ids.ravel())[1:].tolist()
        for segment, area in zip(image.annotations, areas, strict=True):
            if segment.get("area", area) != area:
                yield f"segment {segment['id']} has {area} pixels, its area is given as {segment['area']:g}", False


def only_one_stuff_class(annotated: PanopticFile) -> str | None:
    """The reason why nothing can be learned: all stuff is of one class, and there are no things; void is ignored."""
    used = {segment["category_id"] for image in annotated.images for segment in image.annotations}
    things = set(annotated.category_ids[: annotated.num_things])
    if len(used) != 1 or used & things:
        return None
    name = annotated.class_names[annotated.label_of()[next(iter(used))]]
    return f'every segment is of one category, "{name}", and that is stuff; a segmenter needs things, or two categories'
