"""COCO annotation files of objects: found, read, checked entry by entry; and outlines as bitmaps.

This is one file because it is one format: what is looked for, what may be wrong with it, and what it means.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from focalnet.data import images as decoding
from focalnet.data.formats.problems import Problem
from focalnet.data.readers.collection import SYNONYMS, Split, check_exists
from focalnet.data.readers.image_files import ImageFiles, find_images
from focalnet.data.readers.text import read_text
from focalnet.errors import DataError, ImageError, require

#: One entry of ``annotations``, as it is in the file: ``bbox``, ``category_id``, ``segmentation``, ``iscrowd``.
Annotation: TypeAlias = dict[str, Any]

LARGEST_IMAGE = 2**28  # pixels; beyond what Pillow opens
TOLERANCE = 1.0  # pixels that a box may reach over the edge: annotation tools round


@dataclass(frozen=True)
class Annotated:
    """One image of an annotation file with its usable annotations, sizes in pixels."""

    image_id: int
    file_name: str
    height: int
    width: int
    annotations: list[Annotation] = field(default_factory=list)


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file says. Labels count from 0 in the order of the category ids, whatever their gaps.

    Args:
        path: of the file.
        class_names: by label.
        category_ids: by label.
        images: in the order of the file.
        problems: what was left out, or kept only in part.
    """

    path: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: list[Annotated]
    problems: list[Problem]

    def label_of(self) -> dict[int, int]:
        """Label by category id."""
        return {category: label for label, category in enumerate(self.category_ids)}

    def to_coco(self, images: Sequence[Annotated] | None = None) -> dict[str, Any]:
        """The usable content in COCO's own format, as the evaluation takes it; of some images, or of all."""
        images = self.images if images is None else images
        named = zip(self.category_ids, self.class_names, strict=True)
        return {
            "images": [
                {"id": i.image_id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in images
            ],
            "annotations": [annotation for image in images for annotation in image.annotations],
            "categories": [{"id": number, "name": name} for number, name in named],
        }


def read_coco(path: Path, *, masks: bool = False) -> CocoFile:
    """Reads an annotation file; entries that cannot be used are left out and listed in ``problems``.

    The ids of annotations say nothing about their objects: they may be missing, given twice, or of any type.

    Args:
        path: a JSON file with ``images``, ``annotations`` and ``categories``.
        masks: whether each object must have a segmentation.

    Raises:
        DataError: the file is no such JSON, or has no image or category that can be used.
    """
    content = load(path)
    problems: list[Problem] = []

    def report(entry: str, what: str, fatal: bool = True) -> None:
        problems.append(Problem(str(path), entry, what, fatal))

    categories = unique(content["categories"], "category", category_problem, report)
    images = unique(content["images"], "image", image_problem, report)
    by_image: dict[int, Annotated] = {
        number: Annotated(number, entry["file_name"], entry["height"], entry["width"])
        for number, entry in images.items()
    }
    if not by_image or not categories:
        reason = f"; {problems[0].entry}: {problems[0].what}" if problems else ""
        raise DataError(f"{path}: no usable {'category' if by_image else 'image'} in it{reason}")

    def annotation_problem(entry: Mapping[str, Any]) -> str | None:
        return _reference_problem(entry, by_image, categories) or _shape_problem(entry, by_image, masks)

    first_with: dict[Any, Mapping[str, Any]] = {}  # by id
    for place, entry in enumerate(content["annotations"], start=1):
        if not isinstance(entry, dict):
            report(f"annotation number {place}", "is not an object with image_id, category_id and bbox")
            continue
        entry = _with_numbers(entry, image_id=by_image, category_id=categories)
        number = entry.get("id")  # for messages: two objects may share one, or have none
        name = f"annotation {number}" if is_whole(number) else f"annotation number {place}"
        image_name = f"image {entry['image_id']}, " if is_whole(entry.get("image_id")) else ""
        if is_whole(number) and first_with.setdefault(number, entry) is not entry and first_with[number] == entry:
            report(image_name + name, f"its id {number} is given twice, for the same object")
            continue
        if what := annotation_problem(entry):
            report(image_name + name, what)
            continue
        image = by_image[entry["image_id"]]
        clipped, what = _clip(entry["bbox"], image)
        if what:
            report(f"image {image.image_id} ({image.file_name}), {name}", what, clipped is None)
        if clipped is not None:
            outline = entry.get("segmentation")
            if isinstance(outline, list) and not all(_is_polygon(part) for part in outline):
                whole = [part for part in outline if _is_polygon(part)]
                report(
                    image_name + name, f"{len(outline) - len(whole)} of its polygons left out: too few points", False
                )
                entry = {**entry, "segmentation": whole}
            image.annotations.append(_complete(entry))
    ids = sorted(categories)
    names = tuple(str(categories[number]["name"]) for number in ids)
    return CocoFile(path, names, tuple(ids), list(by_image.values()), problems)


def load(path: Path) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        DataError: it is no JSON, or one without images, annotations and categories.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read as annotations: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is not in COCO's format: expected images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f'{path}: is not in COCO\'s format: it has no list "{key}"')
    return content


Report: TypeAlias = Callable[..., None]


def unique(
    entries: list[Any], item: str, problem: Callable[[Mapping[str, Any]], str | None], report: Report
) -> dict[int, dict[str, Any]]:
    """The entries without a problem, by id; ``problem`` says what is wrong with one, ``report`` takes it."""
    found: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_whole(entry.get("id")):
            report(f"{item} number {place + 1}", 'has no "id" that is a whole number')
            continue
        number = entry["id"]
        if number in found:
            report(_name(item, entry), f"its id {number} is given twice")
        elif what := problem(entry):
            report(_name(item, entry), what)
        else:
            found[number] = entry
    return found


def _name(item: str, entry: Mapping[str, Any]) -> str:
    file = f" ({entry['file_name']})" if isinstance(entry.get("file_name"), str) else ""
    return f"{item} {entry['id']}{file}"


def category_problem(entry: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry of ``categories``, if anything."""
    return None if isinstance(entry.get("name"), str) and entry["name"] else "has no name"


def image_problem(entry: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry of ``images``, if anything."""
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"] or "\0" in entry["file_name"]:
        return "has no file_name"
    height, width = entry.get("height", 0), entry.get("width", 0)
    if not all(is_whole(side) and side > 0 for side in (height, width)) or height * width > LARGEST_IMAGE:
        return f"its height and width are {height!r} and {width!r}, not pixels"
    return None


def _with_numbers(entry: dict[str, Any], **known: Mapping[int, Any]) -> dict[str, Any]:
    """An annotation whose references are numbers, where they are known numbers written as text."""
    texts = {key: entry.get(key) for key in known}
    found = {key: int(t) for key, t in texts.items() if isinstance(t, str) and t.isdecimal() and int(t) in known[key]}
    return {**entry, **found} if found else entry


def _reference_problem(
    entry: Mapping[str, Any], images: Mapping[int, Any], categories: Mapping[int, Any]
) -> str | None:
    for key, known in (("image_id", images), ("category_id", categories)):
        number = entry.get(key)
        if not is_whole(number) or number not in known:
            return f"its {key} {number!r} is not among the file's {key.removesuffix('_id')} entries"
    return None


def _shape_problem(entry: Mapping[str, Any], images: Mapping[int, Annotated], masks: bool) -> str | None:
    box, segmentation = entry.get("bbox"), entry.get("segmentation")
    if not are_numbers(box) or len(box or ()) != 4:
        return f"its bbox {str(box)[:60]} is not four numbers: left, top, width, height"
    if entry.get("iscrowd", 0) not in (0, 1, False, True):
        return f"its iscrowd {entry['iscrowd']!r} is not 0 or 1"
    area = entry.get("area", 0)
    if not are_numbers([area]) or area < 0:
        return f"its area {area!r} is not a number of pixels"
    if segmentation in (None, [], {}):
        return "has no segmentation; data.masks false trains boxes only" if masks else None
    image = images[entry["image_id"]]
    return _segmentation_problem(segmentation, (image.height, image.width))


def _segmentation_problem(segmentation: Any, size: tuple[int, int]) -> str | None:
    if isinstance(segmentation, list):
        whole = any(_is_polygon(part) for part in segmentation)
        return None if whole else "its segmentation is not a list of polygons of three or more points"
    if not isinstance(segmentation, dict) or segmentation.get("size") != list(size):
        return f"its segmentation is neither polygons nor a run-length code of {size[0]} x {size[1]} pixels"
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        runs = all(is_whole(run) and run >= 0 for run in counts)
        if not runs or sum(counts) != math.prod(size):
            return "the runs of its segmentation do not add up to the image"
        return None
    if not isinstance(counts, str) or _decoded_length(counts) != math.prod(size):
        return "the compressed runs of its segmentation do not add up to the image"
    return None


def _is_polygon(part: Any) -> bool:
    return are_numbers(part) and len(part) >= 6 and len(part) % 2 == 0


def _decoded_length(counts: str) -> int | None:
    """Pixels that a compressed run-length code covers; None where it is none.

    The code (cocodataset.github.io): each run in groups of five bits, lowest first, as characters from 48 on, the
    sixth bit for "more follows"; from the fourth run on the difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
        value = shift = 0
    return None if shift else sum(runs)


def _clip(box: Sequence[float], image: Annotated) -> tuple[tuple[float, ...] | None, str | None]:
    """The part of a box (left, top, width, height) within the image as corners, if any, and what is wrong with it."""
    corners = inside(box, image.height, image.width)
    shown = f"[{', '.join(f'{value:g}' for value in box)}]"
    if box[2] <= 0 or box[3] <= 0:
        return None, f"its box {shown} has no size"
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        return None, f"its box {shown} lies outside the image of {image.width} x {image.height}"
    reaches = max(-box[0], -box[1], box[0] + box[2] - image.width, box[1] + box[3] - image.height)
    over = reaches > TOLERANCE
    return corners, f"its box {shown} reaches outside the image of {image.width} x {image.height}" if over else None


def inside(box: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """Corners x1 y1 x2 y2 of a COCO box (left, top, width, height), clipped to the image."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    return (
        min(max(left, 0.0), width),
        min(max(top, 0.0), height),
        min(max(right, 0.0), width),
        min(max(bottom, 0.0), height),
    )


def _complete(entry: dict[str, Any]) -> Annotation:
    """With the two fields that the evaluation needs and some tools leave out."""
    return {"iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3], **entry}


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def are_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers below 1e9."""
    return isinstance(values, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in values
    )  # not a number compares false


AnnotationFormat: TypeAlias = Literal["instances", "panoptic"]


def find_annotations(
    root: Path, split: Split, wanted: str | None = None, format: AnnotationFormat = "instances"
) -> Path | None:
    """The annotation file of a split: ``annotations/instances_train*.json``, ``train/_annotations.coco.json``, ...

    Args:
        root: the folder of the data set.
        split: which one.
        wanted: its path relative to the root, where it is none of these.
        format: COCO's for objects, or for segments: then it is ``annotations/panoptic_train*.json``.

    Raises:
        DataError: the wanted file is not there, or several could be meant.
    """
    check_exists(root)
    if wanted is not None:
        if not (root / wanted).is_file():
            raise DataError(f"{root / wanted}: no such annotation file")
        return root / wanted
    for name in SYNONYMS[split]:
        for pattern in _patterns(name) if format == "instances" else _panoptic_patterns(name):
            found = sorted(root.glob(pattern))
            if len(found) > 1:
                names = ", ".join(str(path.relative_to(root)) for path in found)
                raise DataError(
                    f"{root}: several annotation files for {split}: {names}; choose by data.{split}_annotations"
                )
            if found:
                return found[0]
    return None


def _patterns(name: str) -> Iterator[str]:
    for suffix in ("", "20[0-9][0-9]"):  # as COCO's years
        yield f"annotations/instances_{name}{suffix}.json"
        yield f"annotations/{name}{suffix}.json"
        yield f"{name}{suffix}.json"
    yield from (f"{name}/_annotations.coco.json", f"{name}/annotations.json", f"{name}/{name}.json")


def _panoptic_patterns(name: str) -> Iterator[str]:
    for suffix in ("", "20[0-9][0-9]"):
        yield from (f"annotations/panoptic_{name}{suffix}.json", f"panoptic_{name}{suffix}.json")


def read_image(files: ImageFiles, entry: Annotated) -> Image.Image:
    """The annotated image as 8-bit RGB.

    Raises:
        ImageError: it cannot be decoded, or has another size than its annotations are for.
    """
    path = files.path(entry.file_name)
    try:
        content = files.content(entry.file_name)
    except (OSError, KeyError) as error:
        raise ImageError(f"{path}: cannot be read: {error}") from error
    image = decoding.read(content, path)
    if image.size != (entry.width, entry.height):
        raise ImageError(
            f"{path}: has {image.width} x {image.height} pixels, its annotations (image {entry.image_id}) "
            f"are for {entry.width} x {entry.height}"
        )
    return image


@dataclass(frozen=True)
class CheckedCoco:
    """One split of a detection data set whose annotations have been read and whose images were looked for.

    Args:
        coco: the annotations; images that are not there are left out.
        images: where the files are.
        problems: all that was found, with those of ``coco``.
    """

    coco: CocoFile
    images: ImageFiles
    problems: list[Problem]

    def objects(self) -> dict[str, int]:
        """Number of objects by class name, crowd regions left out."""
        label_of = self.coco.label_of()
        found = (a for image in self.coco.images for a in image.annotations if not a["iscrowd"])
        counts = Counter(label_of[a["category_id"]] for a in found)
        return {name: counts[label] for label, name in enumerate(self.coco.class_names)}


def check_coco(root: Path, annotations: Path, *, masks: bool, images: str | None = None) -> CheckedCoco:
    """Reads a split's annotations and looks for its images.

    Args:
        root: the folder of the data set.
        annotations: the annotation file.
        masks: whether each object must have a segmentation.
        images: the folder or tar file of the images, relative to the root; default: looked for.

    Raises:
        DataError: the annotations cannot be read at all, or no image is found.
    """
    coco = read_coco(annotations, masks=masks)
    files = find_images(root, annotations, [image.file_name for image in coco.images], images)
    missing = [image for image in coco.images if image.file_name not in files]
    absent = {id(image) for image in missing}
    coco.images[:] = [image for image in coco.images if id(image) not in absent]
    problems = [
        Problem(str(annotations), f"image {i.image_id} ({i.file_name})", f"no such file {files.path(i.file_name)}")
        for i in missing
    ]
    return CheckedCoco(coco, files, coco.problems + problems)


def check_images(checked: CheckedCoco) -> list[Problem]:
    """Decodes every image: the broken ones, and those of another size than their annotations are for."""
    problems = []
    for entry in checked.coco.images:
        try:
            read_image(checked.images, entry)
        except ImageError as error:
            name = f"image {entry.image_id} ({entry.file_name})"
            problems.append(Problem(str(checked.coco.path), name, str(error)))
    return problems


def to_bitmaps(segmentations: Sequence[Any], height: int, width: int) -> Tensor:
    """Draws segmentations as masks ``(N, height, width)``, bool.

    Args:
        segmentations: of checked annotations: lists of polygons, or run-length codes, compressed or not.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    codes = require("pycocotools.mask", "dense")
    if not segmentations:
        return torch.zeros(0, height, width, dtype=torch.bool)
    found = []
    for segmentation in segmentations:
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
            found.append(segmentation)
            continue
        parts = codes.frPyObjects(segmentation, height, width)
        found.append(codes.merge(parts) if isinstance(parts, list) else parts)  # an object may be in several pieces
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # pycocotools with numpy 2
        bitmaps_HWN = codes.decode(found)
    return torch.from_numpy(np.ascontiguousarray(bitmaps_HWN.transpose(2, 0, 1))).bool()
