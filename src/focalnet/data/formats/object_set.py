"""Base class of the readers of other formats than COCO, which convert them to the COCO format.

Checks, training and evaluation read the COCO format only. Each format has a file of its own.
"""

from __future__ import annotations

import json
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from focalnet.data import images as decoding
from focalnet.data.readers.collection import SYNONYMS, Split
from focalnet.data.readers.file_names import match_names
from focalnet.errors import ConfigError, DataError, ImageError
from focalnet.files import write
from focalnet.reading import parse_json, read_text

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """An object in pixels of its image.

    Args:
        label: the name of its class.
        box: left, top, width, height.
        polygons: its outline, each x1 y1 x2 y2 ...
        bitmap: its outline as pixels of the whole image, ``(H, W)``, bool, in place of polygons.
        crowd: training and evaluation ignore it.
        group: shapes of an image with the same group and label are one object.
    """

    label: str
    box: tuple[float, float, float, float]
    polygons: tuple[tuple[float, ...], ...] = ()
    bitmap: npt.NDArray[np.bool_] | None = None
    crowd: bool = False
    group: Any = None


@dataclass
class WrittenImage:
    """An image of a data set with its objects.

    Args:
        file_name: path relative to the root of the data set, as far as it is known.
        size: height and width; None where the format does not say.
        shapes: the objects.
        problem: why it cannot be used.
        source: the file that tells of it, for messages.
    """

    file_name: str
    size: tuple[int, int] | None = None
    shapes: list[Shape] = field(default_factory=list)
    problem: str | None = None
    source: str = ""


@dataclass(frozen=True)
class Written:
    """A data set in the COCO format.

    Args:
        content: ``images``, ``annotations`` and ``categories``.
        refused: why an image cannot be used, by file name.
        remarks: assumptions, one line each.
        measured: whether the sizes of images are those of the files, so that comparing the two tells nothing.
    """

    content: dict[str, Any]
    refused: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    measured: bool = False


class ObjectSet(ABC):
    """A data set of objects in another format than COCO.

    Args:
        root: the folder that file names are below.
    """

    format: ClassVar[str]
    """The name of the format in messages."""
    measures: ClassVar[bool] = False
    """Whether places are in shares of the image's sides, which are read from the files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.remarks: list[str] = []

    @classmethod
    @abstractmethod
    def find(cls, path: Path) -> Self | None:
        """Opens a folder or file if it is in this format.

        Raises:
            DataError: it is, and cannot be read.
        """

    @property
    @abstractmethod
    def splits(self) -> Mapping[str, Path]:
        """The path of each split by its name, for messages; empty for a set without splits."""

    @abstractmethod
    def images(self, split: str | None) -> list[WrittenImage]:
        """Reads the images of a split; of the whole set for None.

        Raises:
            DataError: a file cannot be read at all, or there is no such split.
        """

    def name_of(self, split: Split) -> str | None:
        """The name of a split in this data set; None if it does not have the split."""
        return next((own for name in SYNONYMS[split] for own in self.splits if own.casefold() == name), None)

    def class_list(self) -> tuple[str, ...] | None:
        """The classes in label order if the format lists them; None for the sorted names of all splits."""
        return None

    def content(self, split: str | None, classes: Sequence[str] | None = None) -> Written:
        """Converts a split to the COCO format.

        Args:
            split: which; None for all of them.
            classes: by label; default: as the format has it.

        Raises:
            DataError: a file cannot be read at all, or there is no class.
            ConfigError: ``classes`` names one twice.
        """
        if classes is not None and len(set(classes)) < len(classes):
            raise ConfigError(f"classes names one twice: {', '.join(classes)}")
        self.remarks.clear()
        images = self.images(split)
        remarks = tuple(self.remarks)  # of this split alone
        names = self.class_list() if classes is None else tuple(classes)
        if names is None:
            everywhere = images if split is None else self.images(None)
            names = tuple(sorted({shape.label for image in everywhere for shape in image.shapes}))
        if not names:
            raise DataError(f"{self.root}: neither objects in its annotations nor classes given")
        return replace(to_coco(images, names, remarks), measured=self.measures)

    def convert(self, target: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> Path:
        """Writes a split, or all of them, as a COCO annotation file; the images stay where they are.

        Args:
            target: the JSON file to write.
            split: as the set calls it, or as it is usually called; default: all.
            classes: by label; default: as the format has it.

        Returns:
            The file written; its images are named as below the root.

        Raises:
            DataError: something cannot be read, or is of no listed class; nothing is written then.
            ConfigError: ``classes`` names one twice.
        """
        usual = split_of(split) if split else None
        own = (usual and self.name_of(usual)) if split not in self.splits else split
        written = self.content(own or split, classes)
        if written.refused:
            raise DataError("; ".join(islice(written.refused.values(), 3)) + more_than(3, len(written.refused)))
        unknown = [image for image in written.content["images"] if not image["height"]]
        sizes = self.sizes(image["file_name"] for image in unknown)
        for image in unknown:
            size = sizes[image["file_name"]]
            if isinstance(size, str):
                raise DataError(f"{self.root}: the annotations give no size, and {size}")
            image["height"], image["width"] = size
        return write(target, json.dumps(written.content, ensure_ascii=False).encode(), DataError)

    @cached_property
    def image_files(self) -> list[str]:
        """Every image below the root."""
        return [path.relative_to(self.root).as_posix() for path in decoding.list_folder(self.root)]

    def image_of(self, annotation_file: Path, name: str | None) -> str:
        """Finds the image of an annotation file; if there is none, returns its expected name.

        The name in the annotation file is tried first, then the name of the annotation file, because some tools write
        a wrong name. Of several images, the one beside the annotation file or in a folder beside its folder is taken.
        """
        stem = annotation_file.stem
        found = self.image_called(PurePosixPath(name.replace("\\", "/")).name, annotation_file) if name else None
        return found or self.image_called(stem, annotation_file) or name or f"{stem}.jpg"

    def image_called(self, name: str, annotation_file: Path) -> str | None:
        """The image with this file name, with or without its suffix, nearest to an annotation file.

        None if there is none, or several could be meant.
        """
        stem = PurePosixPath(name).stem if PurePosixPath(name).suffix.lower() in decoding.SUFFIXES else name
        found = self._by_name.get(same_name(name), []) or self._by_name.get(same_name(stem + ".*"), [])
        for folder in (annotation_file.parent, annotation_file.parent.parent):
            near = [file for file in found if (self.root / file).is_relative_to(folder)]
            if len(near) == 1:
                return near[0]
        return found[0] if len(found) == 1 else None

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Images by file name, and by file name with ``.*`` in place of the suffix."""
        index: dict[str, list[str]] = {}
        for file in self.image_files:
            path = PurePosixPath(file)
            for key in (path.name, path.stem + ".*"):
                index.setdefault(same_name(key), []).append(file)
        return index

    def sizes(self, files: Iterable[str]) -> dict[str, tuple[int, int] | str]:
        """Height and width of images below the root, upright; or the reason why one cannot be read."""
        listed = list(files)

        def size(file: str) -> tuple[int, int] | str:
            try:
                return decoding.decode(self.root / file, None, decoding.upright_size)
            except ImageError as error:
                return str(error)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return dict(zip(listed, pool.map(size, listed), strict=True))

    def matched(self, names: Iterable[str]) -> dict[str, str | None]:
        """The image below the root that each name refers to; None if there is none, or several could be meant."""
        listed = list(names)
        files = match_names(listed, self.image_files).files
        return {name: files.get(name) for name in listed}


def same_name(name: str) -> str:
    """A key that is the same for names that differ in case or Unicode normalization only."""
    return unicodedata.normalize("NFC", name).casefold()


def more_than(most: int, count: int) -> str:
    """The end of a message that does not list everything."""
    return f"; and {count - most} more" if count > most else ""


def split_of(name: str) -> Split | None:
    """The split that a folder or file name refers to, if any."""
    return next((split for split, names in SYNONYMS.items() if name.casefold() in names), None)


def to_coco(images: Sequence[WrittenImage], classes: Sequence[str], remarks: Sequence[str] = ()) -> Written:
    """Converts images and objects to the COCO format; ids count from 1."""
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for number, image in enumerate(images, start=1):
        height, width = image.size or (0, 0)
        listed.append({"id": number, "file_name": image.file_name, "height": height, "width": width})
        unknown = [shape.label for shape in image.shapes if shape.label not in classes]
        what = image.problem
        if what is None and unknown:
            what = f'class "{unknown[0]}" is not among {", ".join(classes)[:200]}'
        if what is not None:
            refused[image.file_name] = f"{image.source}: {what}" if image.source else what
            continue
        for shape in _joined(image.shapes):
            known = {"id": len(annotations) + 1, "image_id": number, "category_id": classes.index(shape.label) + 1}
            box = [_plain(value) for value in shape.box]
            entry = known | {"bbox": box, "area": _area(shape), "iscrowd": int(shape.crowd)}
            if shape.bitmap is not None:
                entry["segmentation"] = run_lengths(shape.bitmap)
            elif shape.polygons:
                entry["segmentation"] = [[_plain(value) for value in part] for part in shape.polygons]
            annotations.append(entry)
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(classes)]
    return Written({"images": listed, "annotations": annotations, "categories": categories}, refused, list(remarks))


def _joined(shapes: Sequence[Shape]) -> list[Shape]:
    """Merges shapes of one group and label into one object."""
    groups: dict[Any, list[Shape]] = {}
    for place, shape in enumerate(shapes):
        groups.setdefault((place,) if shape.group is None else (shape.group, shape.label), []).append(shape)
    return [_union(some) if len(some) > 1 else some[0] for some in groups.values()]


def _union(shapes: Sequence[Shape]) -> Shape:
    lefts, tops, widths, heights = np.array([shape.box for shape in shapes]).T
    left, top = float(lefts.min()), float(tops.min())
    box = (left, top, float((lefts + widths).max()) - left, float((tops + heights).max()) - top)
    parts = tuple(part for shape in shapes for part in shape.polygons)
    whole = parts if all(shape.polygons for shape in shapes) else ()
    return Shape(shapes[0].label, box, whole, crowd=any(shape.crowd for shape in shapes))


def _area(shape: Shape) -> float:
    if shape.bitmap is not None:
        return float(shape.bitmap.sum())
    if shape.polygons:
        return sum(_polygon_area(part) for part in shape.polygons)
    return _plain(shape.box[2] * shape.box[3])


def _polygon_area(part: Sequence[float]) -> float:
    x, y = np.array(part).reshape(-1, 2).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _plain(value: float) -> float:
    """Rounds to a ten-thousandth of a pixel; whole values become ints."""
    rounded = round(float(value), 4)
    return int(rounded) if rounded.is_integer() else rounded


def text_of(file: Path) -> str:
    """The text of a file.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        return read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{file}: cannot be read as text: {reason}") from error


def read_json(file: Path) -> Any:
    """Reads a JSON file; returns None if it is not JSON.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return parse_json(read_text(file))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError:
        return None


def polygon_shape(label: str, points: Sequence[Point], **more: Any) -> Shape:
    """Makes an object from the corners of its outline."""
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    (left, top), (right, bottom) = array.min(0).tolist(), array.max(0).tolist()
    return Shape(label, (left, top, right - left, bottom - top), (tuple(array.ravel().tolist()),), **more)


def box_shape(label: str, one: Point, other: Point, **more: Any) -> Shape:
    """Makes an object from two opposite corners of its box."""
    left, right = sorted((one[0], other[0]))
    top, bottom = sorted((one[1], other[1]))
    return Shape(label, (left, top, right - left, bottom - top), **more)


def ellipse(center: Point, radii: Point, count: int = 64) -> list[Point]:
    """Returns the corners of a polygon that approximates an ellipse."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return [(center[0] + radii[0] * float(np.cos(a)), center[1] + radii[1] * float(np.sin(a))) for a in angles]


def turned(points: Sequence[Point], degrees: float, center: Point) -> list[Point]:
    """Rotates points clockwise (in image coordinates) around a center."""
    if not np.isfinite(degrees):
        raise ValueError(f"it is rotated by {degrees} degrees")
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = (np.asarray(points) - center) @ matrix.T + center
    return [(float(x), float(y)) for x, y in moved]


def run_lengths(bitmap_HW: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Encodes a bitmap as an uncompressed COCO run-length code."""
    flat = np.asarray(bitmap_HW, dtype=bool).ravel(order="F")
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    runs = np.diff(edges).tolist()
    return {"size": list(bitmap_HW.shape), "counts": [0, *runs] if flat.size and flat[0] else runs}
