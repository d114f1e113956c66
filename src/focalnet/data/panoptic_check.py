"""Is a panoptic data set fit to train on? What is wrong with it, before training starts, image by image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from focalnet.data.datasets.coco import Annotated, Problem
from focalnet.data.datasets.coco_panoptic import PanopticFile, read_ids, read_panoptic
from focalnet.data.datasets.pictures import Pictures, find_maps, find_pictures, read_picture
from focalnet.errors import ImageError


@dataclass(frozen=True)
class CheckedPanoptic:
    """One part of a panoptic data set.

    Args:
        annotated: the annotations; images of which something is missing or does not fit are left out.
        pictures: where the pictures are.
        maps: where the PNG files of segments are.
        problems: all that was found.
    """

    annotated: PanopticFile
    pictures: Pictures
    maps: Pictures
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
    look: bool = True,
    decode: bool = False,
) -> CheckedPanoptic:
    """Reads a part's annotations and looks for its pictures and PNG files.

    Args:
        root: the folder of the data set.
        annotations: the annotation file.
        images: the folder or tar file of the pictures, relative to the root; default: looked for.
        maps: that of the PNG files of segments; default: looked for.
        look: open every PNG, and compare its size and its segments with what is written of them.
        decode: open every picture, too, and compare its size.

    Raises:
        DataError: the annotations cannot be read at all, or no picture or no PNG is found.
    """
    annotated = read_panoptic(annotations)
    pictures = find_pictures(root, annotations, [image.file_name for image in annotated.images], images)
    places = find_maps(root, annotations, list(annotated.maps.values()), maps)

    def problems(image: Annotated) -> list[Problem]:
        name = f"image {image.image_id} ({image.file_name})"
        found = _problems(image, annotated.maps[image.image_id], pictures, places, look=look, decode=decode)
        return [Problem(str(annotations), name, what, fatal) for what, fatal in found]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without holding the interpreter
        found = list(pool.map(problems, annotated.images))
    whole = [not any(one.fatal for one in some) for some in found]
    annotated.images[:] = [image for image, usable in zip(annotated.images, whole, strict=True) if usable]
    return CheckedPanoptic(annotated, pictures, places, annotated.problems + [one for some in found for one in some])


def _problems(
    image: Annotated, name: str, pictures: Pictures, maps: Pictures, *, look: bool, decode: bool
) -> Iterator[tuple[str, bool]]:
    """What is wrong with an image, and whether it is of no use for that."""
    if image.file_name not in pictures:
        yield f"no such file {pictures.path(image.file_name)}", True
    elif decode:
        try:
            read_picture(pictures, image)
        except ImageError as error:
            yield str(error), True
    if name not in maps:
        yield f"no such file {maps.path(name)}", True
    elif look:
        try:
            ids = read_ids(maps, name, image)
        except ImageError as error:
            yield str(error), True
            return
        areas = np.bincount(ids.ravel())[1:].tolist()
        for segment, area in zip(image.annotations, areas, strict=True):
            if segment.get("area", area) != area:
                yield f"segment {segment['id']} has {area} pixels, its area is given as {segment['area']:g}", False


def only_stuff_of_one_kind(annotated: PanopticFile) -> str | None:
    """Why nothing can be learned: there are no objects to tell apart, and all stuff is the same; void is ignored."""
    used = {segment["category_id"] for image in annotated.images for segment in image.annotations}
    things = set(annotated.category_ids[: annotated.num_things])
    if len(used) != 1 or used & things:
        return None
    name = annotated.class_names[annotated.label_of()[next(iter(used))]]
    return f'every segment is of one category, "{name}", and that is stuff; a segmenter needs things, or two categories'
