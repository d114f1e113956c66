"""COCO's panoptic format: a JSON that says what the segments are, and a PNG for each image that says where.

A pixel's color is its segment's id, R + 256 G + 65536 B; 0 means no segment ("void"). The format is described at
cocodataset.org/#format-data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data import images as decoding
from focalnet.data.formats.coco import category_problem, load
from focalnet.data.formats.image_entries import (
    Annotated,
    Annotation,
    Id,
    by_id,
    in_order,
    is_whole,
    known_id,
    locate,
    read_image,
    read_images,
)
from focalnet.data.formats.outlines import are_numbers
from focalnet.data.formats.plausible import alike
from focalnet.data.formats.problems import Problem, Report
from focalnet.data.readers.image_files import ImageFiles, find_images, find_maps, other_splits
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
        remarks: what was taken for granted, a line each.
    """

    path: Path
    class_names: tuple[str, ...]
    category_ids: tuple[Id, ...]
    num_things: int
    images: list[Annotated]
    maps: dict[Id, str]
    problems: list[Problem]
    remarks: list[str] = field(default_factory=list)

    def label_of(self) -> dict[Id, int]:
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

    def report(entry: str, what: str, fatal: bool = True, skippable: bool = True) -> None:
        problems.append(Problem(str(path), entry, what, fatal, skippable))

    categories, _ = by_id(content["categories"], "category", _category_problem, report)
    listed, _ = read_images([_with_name_of_image(entry) for entry in content["images"]], report)
    annotated: list[Annotated] = []
    maps: dict[Id, str] = {}
    for number, entry in _by_image(content["annotations"], listed, report).items():
        segments = _segments(entry, str(listed[number]), categories, report)
        if segments is not None:
            annotated.append(replace(listed[number], annotations=segments))
            maps[number] = entry["file_name"]
    if not annotated or not categories:
        reason = f"; {problems[0].entry}: {problems[0].what}" if problems else ""
        raise DataError(f"{path}: no usable {'category' if annotated else 'image'} in it{reason}")
    ids = sorted(in_order(list(categories)), key=lambda number: not categories[number]["isthing"])
    names = tuple(str(categories[number]["name"]) for number in ids)
    things = sum(bool(categories[number]["isthing"]) for number in ids)
    remark = alike(dict(zip(ids, names, strict=True)))
    return PanopticFile(path, names, tuple(ids), things, annotated, maps, problems, [remark] if remark else [])


def _with_name_of_image(entry: Any) -> Any:
    """An entry of ``images``; Cityscapes' scripts name the image as if it were among the annotations."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        return entry
    return {**entry, "file_name": name.replace("_gtFine_leftImg8bit", "_leftImg8bit")}


def _by_image(entries: list[Any], listed: Mapping[Id, Annotated], report: Report) -> dict[Id, Mapping[str, Any]]:
    """The entries of ``annotations`` by image; none for an image that has none, or two."""
    found: dict[Id, Mapping[str, Any]] = {}
    twice: set[Id] = set()
    for place, entry in enumerate(entries):
        given = entry.get("image_id") if isinstance(entry, dict) else None
        number = known_id(given, listed)
        if number is None:
            report(f"annotation number {place + 1}", f"its image_id {given!r:.60} is not among the file's images")
        elif number in found:
            twice.add(number)
        else:
            found[number] = entry
    for number, image in listed.items():
        if number not in found:
            report(str(image), "has no entry in annotations")
        elif number in twice:
            report(str(image), "has more than one entry in annotations")
            del found[number]
    return found


def _segments(
    entry: Mapping[str, Any], image: str, categories: Mapping[Id, Any], report: Report
) -> list[Annotation] | None:
    """The segments of an image, each with ``iscrowd``; None if anything is wrong with one of them."""
    file, segments = entry.get("file_name"), entry.get("segments_info")
    if not isinstance(file, str) or not file or "\0" in file:
        report(image, "its entry in annotations has no file_name, that of the PNG")
        return None
    if not isinstance(segments, list):
        report(image, 'its entry in annotations has no list "segments_info"')
        return None
    found: dict[int, Annotation] = {}
    for place, segment in enumerate(segments, start=1):
        number = segment.get("id") if isinstance(segment, dict) else None
        if not is_whole(number):
            report(f"{image}, segment number {place}", 'has no "id" that is a whole number')
        elif number in found:
            report(f"{image}, segment {number}", f"its id {number} is given twice")
        elif what := _segment_problem(segment, categories):
            report(f"{image}, segment {number}", what)
        else:
            found[number] = {"iscrowd": 0, **segment, "category_id": known_id(segment["category_id"], categories)}
    return list(found.values()) if len(found) == len(segments) else None


def _category_problem(entry: Mapping[str, Any]) -> str | None:
    if entry.get("isthing") not in (0, 1):
        return f"its isthing {entry.get('isthing')!r} is not 0 or 1"
    return category_problem(entry)


def _segment_problem(entry: Mapping[str, Any], categories: Mapping[Id, Any]) -> str | None:
    if not 0 < entry["id"] <= LARGEST_ID:
        return f"its id is not between 1 and {LARGEST_ID}, and 0 is void: give it, in the JSON and in the PNG, another"
    category = entry.get("category_id")
    if known_id(category, categories) is None:
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
    others = other_splits(annotations)
    files = find_images(root, annotations, [image.file_name for image in annotated.images], images)
    places = find_maps(root, annotations, list(annotated.maps.values()), maps)
    names = places.match(list(annotated.maps.values()), others).files
    wrong: dict[str, str] = {}
    listed = {image.image_id: image for image in annotated.images}
    located = locate(
        listed, files, wrong.__setitem__, annotated.remarks, other_splits=others, compare=open_maps or decode
    )

    def problems(image: Annotated) -> list[Problem]:
        there, map_name = located.get(image.image_id), annotated.maps[image.image_id]
        found = [(wrong[str(image)], True)] if there is None else []
        found += _problems(there, map_name, names.get(map_name), files, places, open_maps=open_maps, decode=decode)
        return [Problem(str(annotations), str(image), what, fatal) for what, fatal in found]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without holding the interpreter
        found = list(pool.map(problems, annotated.images))
    whole = [not any(one.fatal for one in some) for some in found]
    kept = [image.image_id for image, usable in zip(annotated.images, whole, strict=True) if usable]
    annotated.images[:] = [located[number] for number in kept]
    annotated.maps.update({number: names[annotated.maps[number]] for number in kept})
    return CheckedPanoptic(annotated, files, places, annotated.problems + [one for some in found for one in some])


def _problems(
    image: Annotated | None,
    map_name: str,
    map_there: str | None,
    files: ImageFiles,
    maps: ImageFiles,
    *,
    open_maps: bool,
    decode: bool,
) -> Iterator[tuple[str, bool]]:
    """What is wrong with an image that is there and with its PNG, and whether it is of no use for that."""
    if image is not None and decode:
        try:
            read_image(files, image)
        except ImageError as error:
            yield str(error), True
    if map_there is None:
        yield f"no such file {maps.path(map_name)}", True
    elif image is not None and open_maps:
        try:
            ids = read_ids(maps, map_there, image)
        except ImageError as error:
            yield str(error), True
            return
        areas = np.bincount(ids.ravel())[1:].tolist()
        for segment, area in zip(image.annotations, areas, strict=True):
            if segment.get("area", area) != area:
                yield f"segment {segment['id']} has {area} pixels, its area is given as {segment['area']:g}", False


def only_one_stuff_class(annotated: PanopticFile) -> str | None:
    """The reason why nothing can be learned: all stuff has one class, and no class is a thing; void is ignored."""
    used = {segment["category_id"] for image in annotated.images for segment in image.annotations}
    things = set(annotated.category_ids[: annotated.num_things])
    if len(used) != 1 or used & things:
        return None
    name = annotated.class_names[annotated.label_of()[next(iter(used))]]
    return f'every segment is of one category, "{name}", and that is stuff; a segmenter needs things, or two categories'
