"""Pascal VOC XML annotations, in all layouts that tools write."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from typing_extensions import Self

from focalnet.data.formats.object_set import ObjectSet, Shape, WrittenImage, split_of
from focalnet.data.readers.image_files import hidden
from focalnet.errors import DataError
from focalnet.reading import read_text


class VocSet(ObjectSet):
    """A folder with an XML file per image.

    They are in ``Annotations`` with the images in ``JPEGImages`` and the splits in ``ImageSets/Main``; or in
    ``annotations`` with ``images``; or beside the images; each of these in the root or in folders of splits.

    VOC counts pixels from 1 with both ends included: a box from ``xmin`` to ``xmax`` begins at ``xmin - 1`` and is
    ``xmax - xmin + 1`` wide. Objects marked difficult become crowd regions, which training and
    evaluation ignore.
    """

    format = "Pascal VOC"

    @classmethod
    def find(cls, path: Path) -> Self | None:
        if not path.is_dir():
            return None
        first = next((file for pattern in ("*.xml", "*/*.xml", "*/*/*.xml") for file in path.glob(pattern)), None)
        return cls(path) if first is not None and _root_tag(first) == "annotation" else None

    @property
    def splits(self) -> Mapping[str, Path]:
        lists = {file.stem: file for file in sorted(self.root.glob("ImageSets/Main/*.txt")) if split_of(file.stem)}
        if lists:
            return lists
        folders = sorted({file.relative_to(self.root).parts[0] for file in self._files})
        return {name: self.root / name for name in folders if split_of(name)}

    def images(self, split: str | None) -> list[WrittenImage]:
        return [self._read(file) for file in self._listed(split)]

    def _listed(self, split: str | None) -> list[Path]:
        if split is None:
            return self._files
        folder = self.root / split
        if not (self.root / "ImageSets").is_dir() and folder.is_dir():
            return [file for file in self._files if file.is_relative_to(folder)]
        listed = self.root / "ImageSets" / "Main" / f"{split}.txt"
        try:
            lines = read_text(listed).split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{listed}: cannot be read as a list of images: {error}") from error
        by_stem = {file.stem: file for file in self._files}
        stems = [line.split()[0] for line in lines if line.strip()]
        if not stems:
            raise DataError(f"{listed}: names no images")
        if missing := [stem for stem in stems if stem not in by_stem]:
            raise DataError(f"{listed}: {len(missing)} of its images have no XML file, e.g. {missing[0]}")
        return [by_stem[stem] for stem in stems]

    @cached_property
    def _files(self) -> list[Path]:
        files = [file for file in sorted(self.root.rglob("*.xml")) if not hidden(file.relative_to(self.root))]
        if not files:
            raise DataError(f"{self.root / 'Annotations'}: no XML files there")
        return files

    def _read(self, file: Path) -> WrittenImage:
        """Reads the image and the objects of one XML file."""
        try:
            tree = ElementTree.parse(file).getroot()
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last: an unknown encoding
            raise DataError(f"{file}: cannot be read as XML: {error}") from error
        height, width = (self._side(file, tree, side) for side in ("height", "width"))
        name = self.image_of(file, (tree.findtext("filename") or "").strip() or None)
        shapes = [_object(file, one, place) for place, one in enumerate(tree.iterfind("object"), start=1)]
        return WrittenImage(name, (height, width) if height and width else None, shapes, source=str(file))

    def _side(self, file: Path, tree: ElementTree.Element, side: str) -> int:
        given = tree.findtext(f"size/{side}")
        return int(_number(file, tree, f"size/{side}")) if given and given.strip() else 0


def convert_voc(root: Path, target: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> Path:
    """Writes the objects of a Pascal VOC folder as a COCO annotation file; the images stay where they are.

    Args:
        root: the folder.
        target: the JSON file to write.
        split: only the images of it; default: all.
        classes: names in label order; default: those found, sorted, also outside the split, so that all splits agree.

    Returns:
        The file written; its images are named as below ``root``.

    Raises:
        DataError: a file cannot be read, an object has no name or box, or a class that is not listed, or there is none.
        ConfigError: ``classes`` names one twice.
    """
    return VocSet(root).convert(target, split=split, classes=classes)


def _root_tag(file: Path) -> str | None:
    try:
        for _, element in ElementTree.iterparse(file, events=("start",)):
            return str(element.tag)
    except (OSError, ElementTree.ParseError, ValueError, LookupError):
        pass
    return None


def _object(file: Path, one: ElementTree.Element, place: int) -> Shape:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{file}: object {place} has no name")
    x1, y1, x2, y2 = (_number(file, one, f"bndbox/{side}", place) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (one.findtext("difficult") or "0").strip() == "1"
    return Shape(name, (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1), crowd=difficult)


def _number(file: Path, parent: ElementTree.Element, path: str, place: int | None = None) -> float:
    text = parent.findtext(path)
    where = f"{file}: object {place}" if place else str(file)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {path.replace('/', ' ')} is {text!r}, not a number of pixels")
    return value
