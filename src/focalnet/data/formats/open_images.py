"""Open Images CSV files of boxes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from typing_extensions import Self

from focalnet.data.formats.object_set import ObjectSet, Shape, WrittenImage, split_of, text_of
from focalnet.errors import DataError

_COLUMNS = {"ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"}


class OpenImagesSet(ObjectSet):
    """``train-annotations-bbox.csv`` and the like, with ``class-descriptions-boxable.csv`` beside them.

    Places are shares of the image's sides. Boxes around a group of objects become crowd regions. Only the images that
    are there are taken: few have them all.
    """

    format = "Open Images"
    measures = True

    def __init__(self, root: Path, files: Mapping[str | None, Path]) -> None:
        super().__init__(root)
        self._by_split = files

    @classmethod
    def find(cls, path: Path) -> Self | None:
        if path.is_file():
            return cls(path.parent, {None: path}) if path.suffix == ".csv" and _is_boxes(path) else None
        files = [file for file in [*sorted(path.glob("*.csv")), *sorted(path.glob("*/*.csv"))] if _is_boxes(file)]
        by_split: dict[str | None, Path] = {}
        for file in files:
            words = file.stem.replace("_", "-").split("-")
            name = next((word for word in (*words, file.parent.name) if split_of(word)), None)
            by_split.setdefault(name, file)
        return cls(path, by_split) if len(by_split) == len(files) > 0 else None

    @property
    def splits(self) -> Mapping[str, Path]:
        return {name: file for name, file in self._by_split.items() if name is not None}

    def images(self, split: str | None) -> list[WrittenImage]:
        files = list(self._by_split.values()) if split is None else [self._by_split[split]]
        rows = [(file, number, row) for file in files for number, row in enumerate(_rows(file), start=2)]
        descriptions, places = self._descriptions(), self._places(split)
        wanted = dict.fromkeys(row["ImageID"] for _, _, row in rows)
        sizes = self.sizes(places[name] for name in wanted if name in places)
        images = {name: WrittenImage(places[name]) for name in wanted if name in places}
        if not images:
            raise DataError(f"{files[0]}: none of its {len(wanted)} images is below {self.root}")
        if len(images) < len(wanted):
            self.remarks.append(f"{len(wanted) - len(images)} of {len(wanted)} images are not there, and left out")
        for file, number, row in rows:
            image = images.get(row["ImageID"])
            if image is None:
                continue
            image.source, size = str(file), sizes[image.file_name]
            if isinstance(size, str):
                image.problem = size
                continue
            image.size = size
            shape = _shape(row, size, descriptions)
            if shape is None:
                image.problem = (
                    image.problem or f"line {number} has no class, or a box that is not in fractions of the image size"
                )
            else:
                image.shapes.append(shape)
        return list(images.values())

    def _places(self, split: str | None) -> dict[str, str]:
        """Images by their id, the file name without suffix; those of this split take precedence."""
        files = sorted(self.image_files, key=lambda file: split not in file.split("/")[:-1])
        return {Path(file).stem: file for file in reversed(files)}

    def _descriptions(self) -> dict[str, str]:
        """Names of classes by their code."""
        for pattern in ("*class-descriptions*.csv", "*/*class-descriptions*.csv"):
            for file in sorted(self.root.glob(pattern)):
                rows = csv.reader(text_of(file).split("\n"))
                return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] != "LabelName"}
        return {}


def _is_boxes(file: Path) -> bool:
    with file.open("rb") as opened:
        first = opened.readline(1000).decode("utf-8-sig", "replace")
    return set(first.strip().split(",")) >= _COLUMNS


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(text_of(file).split("\n")))


def _shape(row: Mapping[str, str], size: tuple[int, int], descriptions: Mapping[str, str]) -> Shape | None:
    try:
        left, right, top, bottom = (float(row[key]) for key in ("XMin", "XMax", "YMin", "YMax"))
    except (KeyError, TypeError, ValueError):
        return None
    label = descriptions.get(row["LabelName"], row["LabelName"])
    if not label or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        return None
    height, width = size
    box = (left * width, top * height, (right - left) * width, (bottom - top) * height)
    return Shape(label, box, crowd=row.get("IsGroupOf") == "1")
