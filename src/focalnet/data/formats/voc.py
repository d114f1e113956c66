"""Pascal VOC XML annotations, in all layouts that tools write."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from typing_extensions import Self

from focalnet.data.formats.object_set import ObjectSet, Shape, WrittenImage, same_name, split_of
from focalnet.data.formats.plausible import SHARES
from focalnet.data.images import SUFFIXES, list_folder
from focalnet.errors import DataError
from focalnet.reading import read_text

_NO, _YES = ("0", "0.0", "false", "no", "unspecified"), ("1", "1.0", "true", "yes")


class VocSet(ObjectSet):
    """A folder with an XML file per image.

    They are in ``Annotations`` with the images in ``JPEGImages`` and the splits in ``ImageSets/Main``; or in
    ``annotations`` with ``images``; or beside the images; each of these in the root or in folders of splits.

    The image of an XML file is the one with the same name; if there is none, the one that the file names, which tools
    often leave as it was when images are renamed.

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
        files = self._listed(split)
        renamed: list[Path] = []
        images = [self._read(file, renamed) for file in files]
        if renamed:
            self.remarks.append(
                f"{len(renamed)} XML files name another image than the one called like them, which is read, "
                f"e.g. {renamed[0].name}"
            )
        boxes = [shape.box for image in images for shape in image.shapes]
        if boxes and all(left + width <= 1 and top + height <= 1 for left, top, width, height in boxes):
            raise DataError(f"{files[0]} and all others: {SHARES}")
        if from_zero := sum(min(box[:2]) < 0 for box in boxes):
            self.remarks.append(
                f"{from_zero} of {len(boxes)} boxes begin at 0, but Pascal VOC counts pixels from 1, and so they are "
                "read: if the tool counts from 0, boxes lie a pixel too far left and up"
            )
        if not (self.root / "ImageSets").is_dir() and (without := self._without_file(images)):
            self.remarks.append(f"{len(without)} images have no XML file, and are left out, e.g. {without[0]}")
        return images

    def _without_file(self, images: Sequence[WrittenImage]) -> list[str]:
        """Images in the folders of these that none of all XML files is for."""
        known = {image.file_name for image in images}
        stems = {same_name(file.stem) for file in self._files}
        folders = {PurePosixPath(name).parent for name in known}
        paths = [PurePosixPath(name) for name in self.image_files if name not in known]
        return [str(path) for path in paths if path.parent in folders and same_name(path.stem) not in stems]

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
        names = [line.split()[0] for line in lines if line.strip()]
        # Some lists name the images, with their suffix.
        stems = [PurePosixPath(name).stem if name.lower().endswith(SUFFIXES) else name for name in names]
        if not stems:
            raise DataError(f"{listed}: names no images")
        if missing := [stem for stem in stems if stem not in by_stem]:
            raise DataError(f"{listed}: {len(missing)} of its images have no XML file, e.g. {missing[0]}")
        return [by_stem[stem] for stem in stems]

    @cached_property
    def _files(self) -> list[Path]:
        files = list_folder(self.root, (".xml",))
        if not files:
            raise DataError(f"{self.root / 'Annotations'}: no XML files there")
        return files

    def _read(self, file: Path, renamed: list[Path]) -> WrittenImage:
        """Reads the image and the objects of one XML file, which is added to ``renamed`` if it names another image."""
        try:
            tree = ElementTree.parse(file).getroot()
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last: an unknown encoding
            raise DataError(f"{file}: cannot be read as XML: {error}") from error
        height, width = (self._side(file, tree, side) for side in ("height", "width"))
        written = (tree.findtext("filename") or "").strip() or None
        own, named = self.image_called(file.stem, file), self.image_of(file, written)
        name = own or named
        if name != named:
            renamed.append(file)
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
    difficult = (one.findtext("difficult") or "0").strip().casefold()
    if difficult not in _NO + _YES:
        raise DataError(f"{file}: object {place}: difficult is {difficult!r:.60}, not 0 or 1")
    return Shape(name, (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1), crowd=difficult in _YES)


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
