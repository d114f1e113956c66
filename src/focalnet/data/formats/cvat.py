"""CVAT's own XML format, "CVAT for images 1.1"."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from typing_extensions import Self

from focalnet.data.formats.object_set import (
    ObjectSet,
    Shape,
    WrittenImage,
    box_shape,
    ellipse,
    polygon_shape,
    split_of,
    turned,
)
from focalnet.errors import DataError

_OBJECTS = ("box", "polygon", "ellipse", "mask")
_NO_OBJECTS = ("polyline", "points", "cuboid", "skeleton")


class CvatSet(ObjectSet):
    """A file ``annotations.xml`` with all images, whose subsets are the splits.

    Boxes, polygons, ellipses and masks are objects, and turned boxes are polygons; of one group and class they are one
    object. An image with lines or points is refused: they are not objects. So are tracks of videos, which CVAT can
    export as images.
    """

    format = "CVAT"

    def __init__(self, file: Path) -> None:
        super().__init__(file.parent)
        self._file = file

    @classmethod
    def find(cls, path: Path) -> Self | None:
        files = [path] if path.is_file() else [*sorted(path.glob("*.xml")), *sorted(path.glob("annotations/*.xml"))]
        found = [cls(file) for file in files if file.suffix == ".xml" and _is_cvat(file)]
        if found and not path.is_file():
            found[0].root = path
        return found[0] if len(found) == 1 else None

    @property
    def splits(self) -> Mapping[str, Path]:
        names = dict.fromkeys(image.get("subset", "") for image in self._tree.iterfind("image"))
        return {name: self._file for name in names if split_of(name)}

    def class_list(self) -> tuple[str, ...] | None:
        """The labels of the project, in its order."""
        names = [(label.findtext("name") or "").strip() for label in self._tree.iter("label")]
        return tuple(dict.fromkeys(name for name in names if name)) or None

    def images(self, split: str | None) -> list[WrittenImage]:
        if next(self._tree.iterfind("track"), None) is not None:
            raise DataError(f'{self._file}: has tracks of a video; export it as "CVAT for images" or "COCO"')
        listed = [image for image in self._tree.iterfind("image") if split in (None, image.get("subset"))]
        found = self.matched(image.get("name", "") for image in listed)
        return [self._read(image, found[image.get("name", "")]) for image in listed]

    @cached_property
    def _tree(self) -> ElementTree.Element:
        try:
            return ElementTree.parse(self._file).getroot()
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
            raise DataError(f"{self._file}: cannot be read as XML: {error}") from error

    def _read(self, entry: ElementTree.Element, place: str | None) -> WrittenImage:
        name = entry.get("name", "")
        image = WrittenImage(place or name, source=f"{self._file}: image {name}")
        try:
            image.size = int(entry.get("height", "")), int(entry.get("width", ""))
        except ValueError:
            image.size = None
        for one in entry:
            if one.tag in _NO_OBJECTS:
                image.problem = image.problem or f"has {one.tag}, which is not an object"
            elif one.tag in _OBJECTS:
                try:
                    image.shapes.append(_shape(one, image.size))
                except (KeyError, TypeError, ValueError) as error:
                    image.problem = image.problem or f"has a {one.tag} that cannot be read: {error!r:.80}"
        return image


def _is_cvat(file: Path) -> bool:
    try:
        for _, element in ElementTree.iterparse(file, events=("start",)):
            if element.tag not in ("annotations", "version"):
                return element.tag in ("meta", "image", "track")
    except (OSError, ElementTree.ParseError, ValueError, LookupError):
        pass
    return False


def _shape(one: ElementTree.Element, size: tuple[int, int] | None) -> Shape:
    """Converts an element to an object; group 0 stands for no group.

    Raises:
        KeyError, TypeError, ValueError: something of it is missing or no number.
    """
    label, group = one.attrib["label"], one.get("group_id", "0")
    more = {"group": None if group in ("", "0") else group}
    if one.tag == "box":
        left, top, right, bottom = (float(one.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        angle = float(one.get("rotation", 0))
        if not angle:
            return box_shape(label, (left, top), (right, bottom), **more)
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return polygon_shape(label, turned(corners, angle, ((left + right) / 2, (top + bottom) / 2)), **more)
    if one.tag == "polygon":
        points = [tuple(map(float, pair.split(","))) for pair in one.attrib["points"].split(";")]
        return polygon_shape(label, [(x, y) for x, y in points], **more)
    if one.tag == "ellipse":
        x, y, rx, ry = (float(one.attrib[side]) for side in ("cx", "cy", "rx", "ry"))
        return polygon_shape(label, turned(ellipse((x, y), (rx, ry)), float(one.get("rotation", 0)), (x, y)), **more)
    left, top, width, height = (int(one.attrib[side]) for side in ("left", "top", "width", "height"))
    runs = [int(run) for run in one.attrib["rle"].split(",")]
    if size is None or sum(runs) != width * height or min(left, top, width, height, *runs) < 0:
        raise ValueError("its runs do not add up to its box")
    whole = np.zeros(size, dtype=bool)
    part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    whole[top : top + height, left : left + width] = part
    return Shape(label, (left, top, width, height), bitmap=whole)
