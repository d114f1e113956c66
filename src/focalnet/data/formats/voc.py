"""Pascal VOC's XML annotations as COCO files, which is what the rest of the library reads."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from focalnet.data.readers.text import read_text
from focalnet.errors import ConfigError, DataError
from focalnet.files import write


def convert_voc(root: Path, target: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> Path:
    """Writes the objects of a Pascal VOC folder as a COCO annotation file; the images stay where they are.

    VOC counts pixels from 1 with both ends included: a box from ``xmin`` to ``xmax`` begins at ``xmin - 1`` and is
    ``xmax - xmin + 1`` wide. Objects marked difficult become crowd regions: neither to be found nor a mistake.

    Args:
        root: the folder with ``Annotations`` and ``JPEGImages``.
        target: the JSON file to write.
        split: only the images listed in ``ImageSets/Main/SPLIT.txt``; default: all.
        classes: names in label order; default: those found, sorted, also outside the split, so that all splits agree.

    Returns:
        The file written; its images are named as below ``root``.

    Raises:
        DataError: a file cannot be read, an object has no name or box, or a class that is not listed, or there is none.
        ConfigError: ``classes`` names one twice.
    """
    if classes is not None and len(set(classes)) < len(classes):
        raise ConfigError(f"classes names one twice: {', '.join(classes)}")
    files = _files(root, split)
    read = {file: _read(file) for file in files}
    names = list(classes or ())
    if classes is None:
        read |= {file: _read(file) for file in _files(root) if file not in read}
        names = sorted({name for _, objects in read.values() for name, _ in objects})
    if not names:
        raise DataError(f"{root}: neither objects in its annotations nor classes given")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, file in enumerate(files, start=1):
        image, objects = read[file]
        images.append({"id": number, **image, "file_name": _image(root, file, image["file_name"])})
        for name, shape in objects:
            if name not in names:
                raise DataError(f'{file}: class "{name}" is not among {", ".join(names)}')
            known = {"id": len(annotations) + 1, "image_id": number, "category_id": names.index(name) + 1}
            annotations.append(known | shape)
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return write(target, json.dumps(content).encode(), DataError)


def _files(root: Path, split: str | None = None) -> list[Path]:
    if split is None:
        files = sorted((root / "Annotations").glob("*.xml"))
        if not files:
            raise DataError(f"{root / 'Annotations'}: no XML files there")
        return files
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = read_text(listed).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed}: cannot be read as a list of images: {error}") from error
    files = [root / "Annotations" / f"{line.split()[0]}.xml" for line in lines if line.strip()]
    if not files:
        raise DataError(f"{listed}: names no images")
    return files


def _read(file: Path) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """The image and the objects, each with its class, of one XML file."""
    try:
        tree = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last: an unknown encoding
        raise DataError(f"{file}: cannot be read as XML: {error}") from error
    height, width = (_number(file, tree, f"size/{side}") for side in ("height", "width"))
    image = {"file_name": tree.findtext("filename") or "", "height": int(height), "width": int(width)}
    return image, [_object(file, one, place) for place, one in enumerate(tree.iterfind("object"), start=1)]


def _object(file: Path, one: ElementTree.Element, place: int) -> tuple[str, dict[str, Any]]:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{file}: object {place} has no name")
    x1, y1, x2, y2 = (_number(file, one, f"bndbox/{side}", place) for side in ("xmin", "ymin", "xmax", "ymax"))
    left, top, width, height = x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1
    difficult = (one.findtext("difficult") or "0").strip() == "1"
    return name, {"bbox": [left, top, width, height], "area": width * height, "iscrowd": int(difficult)}


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


def _image(root: Path, file: Path, name: str) -> str:
    """The image's path below the root. Some tools write a wrong file name: the annotation file's own decides then."""
    folder = root / "JPEGImages"
    if name and (folder / Path(name).name).is_file():
        return f"JPEGImages/{Path(name).name}"
    same = sorted(folder.glob(f"{file.stem}.*"))
    return f"JPEGImages/{same[0].name if same else name or file.stem + '.jpg'}"
