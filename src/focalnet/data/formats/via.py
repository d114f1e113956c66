"""Files of VGG Image Annotator, JSON or CSV, one for the data set or for each split."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import Self

from focalnet.data.formats.object_set import (
    ObjectSet,
    Shape,
    WrittenImage,
    ellipse,
    polygon_shape,
    read_json,
    split_of,
    text_of,
)
from focalnet.errors import DataError
from focalnet.reading import parse_json


class ViaSet(ObjectSet):
    """A file of VGG Image Annotator, a project or annotations exported as JSON or CSV: in the root, or in each split's
    folder.

    The class is the one attribute that regions have, or that called class, label, name, type or category; without any
    attribute all regions are of one class, "object". Rectangles, polygons, circles and ellipses are objects.
    """

    format = "VGG Image Annotator"
    usual = ("class", "label", "name", "type", "category")

    def __init__(self, root: Path, files: Mapping[str | None, Path]) -> None:
        super().__init__(root)
        self._by_split = files

    @classmethod
    def find(cls, path: Path) -> Self | None:
        if path.is_file():
            return cls(path.parent, {None: path}) if _via_images(path) is not None else None
        patterns = ("*.json", "*/*.json", "*.csv", "*/*.csv")
        files = [file for pattern in patterns for file in sorted(path.glob(pattern)) if _via_images(file)]
        by_split: dict[str | None, Path] = {file.parent.name: file for file in files if split_of(file.parent.name)}
        if by_split:
            return cls(path, by_split)
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:3])
            raise DataError(f"{path}: has {len(files)} files of {cls.format} ({names}); leave one, or name it")
        return cls(path, {None: files[0]}) if files else None

    @property
    def splits(self) -> Mapping[str, Path]:
        return {name: file for name, file in self._by_split.items() if name is not None}

    def images(self, split: str | None) -> list[WrittenImage]:
        files = list(self._by_split.values()) if split is None else [self._by_split[split]]
        entries = [(file, entry) for file in files for entry in _via_images(file) or ()]
        key = self._attribute([entry for _, entry in entries])
        return [self._read(file, entry, key) for file, entry in entries]

    def _attribute(self, entries: list[dict[str, Any]]) -> str | None:
        regions = [region for entry in entries for region in _regions(entry)]
        named = [region.get("region_attributes") for region in regions]
        counts = Counter(key for attributes in named if isinstance(attributes, dict) for key in attributes)
        if not counts:
            self.remarks.append('its regions have no attribute: all are of one class, "object"')
            return None
        found = [key for key in self.usual if key in counts] or (list(counts) if len(counts) == 1 else [])
        if len(found) != 1:
            raise DataError(
                f"{self.root}: its regions have the attributes {', '.join(counts)}; call the one with the class "
                '"class", and no other by a usual name of one'
            )
        return found[0]

    def _read(self, file: Path, entry: dict[str, Any], key: str | None) -> WrittenImage:
        given = str(entry.get("filename") or "")
        place = file.parent / given
        beside = place.relative_to(self.root).as_posix() if place.is_relative_to(self.root) else ""
        name = beside if beside in self._known else self.matched([given])[given]
        image = WrittenImage(name or given, source=str(file))
        for number, region in enumerate(_regions(entry), start=1):
            shape = _via_shape(region, key)
            if isinstance(shape, str):
                image.problem = image.problem or f"{given}: region {number} {shape}"
            else:
                image.shapes.append(shape)
        return image

    @cached_property
    def _known(self) -> set[str]:
        return set(self.image_files)


def _via_images(file: Path) -> list[dict[str, Any]] | None:
    """The entries of images in a file; None if the file is not from VGG Image Annotator."""
    if file.suffix == ".csv":
        return _of_table(file)
    content = read_json(file) if file.suffix == ".json" else None
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    entries = list(content.values()) if isinstance(content, dict) else []
    known = entries and all(isinstance(e, dict) and "filename" in e and "regions" in e for e in entries)
    return entries if known else None


def _of_table(file: Path) -> list[dict[str, Any]] | None:
    """The same entries, of a CSV file: a row for each region, or one without a region for an image that has none.

    Raises:
        DataError: it cannot be read, or is from version 3, whose columns are others.
    """
    with file.open("rb") as opened:
        first = opened.readline(1000).decode("utf-8-sig", "replace")
    if "CSV_HEADER" in first or first.startswith("# Exported using VGG Image Annotator"):
        raise DataError(f"{file}: is from version 3 of {ViaSet.format}; export it in COCO's format")
    columns = [name.strip(' #\r\n"') for name in first.split(",")]
    if not {"filename", "region_shape_attributes", "region_attributes"} <= set(columns):
        return None
    entries: dict[str, dict[str, Any]] = {}
    number = 1
    try:
        for row in csv.DictReader(text_of(file).split("\n")[1:], columns):
            number += 1
            entry = entries.setdefault(row["filename"], {"filename": row["filename"], "regions": []})
            shape, attributes = (parse_json(row[f"region_{kind}attributes"]) for kind in ("shape_", ""))
            if shape:
                entry["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    except (csv.Error, TypeError, ValueError) as error:  # TypeError: a column is missing
        raise DataError(f"{file}: line {number} cannot be read: {error}") from error
    return list(entries.values())


def _regions(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    regions = entry.get("regions") or []
    listed = list(regions.values()) if isinstance(regions, dict) else regions
    return [region if isinstance(region, dict) else {} for region in listed] if isinstance(listed, list) else [{}]


def _via_shape(region: Mapping[str, Any], key: str | None) -> Shape | str:
    attributes, form = region.get("region_attributes") or {}, region.get("shape_attributes") or {}
    if not isinstance(attributes, dict) or not isinstance(form, dict):
        return "its attributes are not an object"
    label = attributes.get(key) if key is not None else "object"
    if isinstance(label, dict):  # boxes that are ticked
        ticked = [name for name, value in label.items() if value]
        label = ticked[0] if len(ticked) == 1 else None
    if not isinstance(label, str) or not label.strip():
        return f"has no {key}"
    label = label.strip()
    try:
        if form.get("name") == "rect":
            x, y, w, h = (float(form[side]) for side in ("x", "y", "width", "height"))
            return Shape(label, (x, y, w, h))
        if form.get("name") == "polygon" and len(form["all_points_x"]) >= 3:
            points = zip(form["all_points_x"], form["all_points_y"], strict=True)
            return polygon_shape(label, [(float(x), float(y)) for x, y in points])
        if form.get("name") in ("circle", "ellipse"):
            radii = (form["r"], form["r"]) if "r" in form else (form["rx"], form["ry"])
            corners = ellipse((float(form["cx"]), float(form["cy"])), (float(radii[0]), float(radii[1])))
            return polygon_shape(label, corners)
    except (KeyError, TypeError, ValueError):
        return "has coordinates that are not numbers, or lacks some"
    return f"is a {form.get('name')}, which is not an object"
