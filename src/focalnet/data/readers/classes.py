"""Which name in the data is which label, and what to call it."""

from __future__ import annotations

import csv
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from timm.utils.misc import natural_key

from focalnet.errors import DataError, did_you_mean
from focalnet.reading import parse_json, read_text

logger = logging.getLogger(__name__)


def read_class_map(path: Path) -> dict[str, str]:
    """Reads a text file with one class a line, in label order: its name in the data, then optionally a tab and a title.

    Returns:
        Title by name; a name without a title is its own.

    Raises:
        DataError: the file cannot be read, is empty or names a class twice.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of classes: {error}") from error
    pairs = [line.partition("\t") for line in lines if line.strip()]
    titles = {name.strip(): title.strip() or name.strip() for name, _, title in pairs}
    if not titles:
        raise DataError(f"{path}: lists no classes; one name a line, in label order")
    if len(titles) < len(pairs):
        raise DataError(f"{path}: names a class twice")
    return titles


def class_name(text: str) -> str:
    """A class's name in the one form of Unicode that all readers use: accents are whole, as in ``"café"``."""
    return unicodedata.normalize("NFC", text)


_SPLITS = ("train", "training", "val", "validation", "valid", "dev", "eval", "test", "testing", "trn", "tst")
_ROLES = (
    *("image", "images", "img", "imgs", "jpegimages", "leftimg8bit"),
    *("mask", "masks", "label", "labels", "annotation", "annotations", "gt", "ground_truth", "groundtruth", "gtfine"),
    *("segmentationclass", "segmentationobject"),
)


def is_like_split(name: str) -> bool:
    """Whether a folder is called as a split, or has its name within its own: ``Testing``, ``seg_train``."""
    return any(word in _SPLITS for word in re.split(r"[^a-z]+", name.casefold()))


def _check_are_classes(names: Sequence[str], where: str) -> None:
    """Raises ``DataError`` where folders are called as splits, or as images and masks, and none as a class."""
    shown = ", ".join(names)
    if names and all(name.casefold() in _SPLITS for name in names):
        raise DataError(
            f"{where}/{names[0]}: has images but no class folders; put those of each class in "
            f"{where}/{names[0]}/<class>/ (classes that a table lists are not read)"
        )
    if names and all(name.casefold() in _ROLES for name in names):
        raise DataError(
            f"{where}: has images in {shown}, which are not classes: for label maps use a segmentation recipe, "
            "for boxes one of detection; a classifier's images are in <class>/"
        )
    spelled: dict[str, str] = {}
    for name in names:
        other = spelled.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            logger.warning(
                '%s: "%s" and "%s" are two classes, though they differ only in case or spaces', where, other, name
            )


def number_classes(
    found: Iterable[str], titles: Mapping[str, str] | None, where: str
) -> tuple[dict[str, int], list[str]]:
    """Numbers the class names found in the data: by the user's list, else in natural order ("2" before "10").

    Names are the same where they differ in Unicode normalization only.

    Returns:
        Label by name as found, and titles by label.

    Raises:
        DataError: the data hold a class that the list does not.
    """
    spelled = {name: class_name(name) for name in found}
    names = sorted(sorted(set(spelled.values())), key=natural_key)  # which takes Cat and cat as the same
    if titles is None:
        _check_are_classes(names, where)
        label_of, shown = {name: label for label, name in enumerate(names)}, names
    else:
        listed = {class_name(name): title for name, title in titles.items()}
        unknown = [name for name in names if name not in listed]
        if unknown:
            raise DataError(f'{where}: class "{unknown[0]}" is not in the class map{did_you_mean(unknown[0], listed)}')
        label_of, shown = {name: label for label, name in enumerate(listed)}, list(listed.values())
    return label_of | {name: label_of[same] for name, same in spelled.items()}, shown


_MADE_UP = re.compile(r"(class )?\d+")  # names of classes that nobody has named


def other_numbering(known: Sequence[str], names: Sequence[str]) -> str | None:
    """Why labels do not mean the same to a network and to data, as far as their class names tell.

    Args:
        known: names of the network's classes, by index; empty if unknown.
        names: those of the data, by label, as many.

    Returns:
        A class whose number differs; None where no name of the one has another number in the other.
    """
    ours, theirs = ([_folded(name) for name in some] for some in (known, names))
    for label, name in enumerate(theirs):
        if ours.count(name) == theirs.count(name) == 1 and ours.index(name) != label:
            return f'"{names[label]}" is class {label} of the data and class {ours.index(name)} of the weights'
    return None


def other_class_names(known: Sequence[str], names: Sequence[str]) -> str | None:
    """A class that a network and data with as many classes call differently, unless nobody has named them."""
    if any(all(_MADE_UP.fullmatch(name) for name in some) for some in (known, names)):
        return None
    pairs = enumerate(zip(known, names, strict=True))
    different = [(label, own, other) for label, (own, other) in pairs if _folded(own) != _folded(other)]
    if not different:
        return None
    label, own, other = different[0]
    return f'class {label} is "{other}" in the data and "{own}" in the weights'


def _folded(name: str) -> str:
    return class_name(name).casefold().replace("_", " ").strip()


class ClassList(NamedTuple):
    """What a file says of the classes of label maps.

    Args:
        names: in label order.
        ignore_index: the label that is not a class, if the file names one.
        palette: the number of each color (red, green, blue), where the file says it.
    """

    names: tuple[str, ...] = ()
    ignore_index: int | None = None
    palette: dict[tuple[int, int, int], int] | None = None


def read_class_names(path: Path) -> ClassList:
    """Reads the names of classes in label order, the number to ignore and the colors of label maps.

    Formats: JSON, ``["sky", ...]`` or ``{"classes": ["sky", ...], "ignore_index": 11, "palette": [[0, 0, 255], ...]}``
    (the palette as a color for each number, or by name); text with a name a line; CVAT's ``labelmap.txt``
    (``sky:0,0,255::``); tables with the columns ``name, r, g, b`` or ``Pixel Value, Class``; ADE20K's
    ``objectInfo150.txt``, a table whose column ``Name`` counts, up to its first semicolon.

    Raises:
        DataError: the file has none of them.
    """
    try:
        text = read_text(path)
        if path.suffix == ".json":
            return _of_json(parse_json(text))
        lines = [line for line in text.splitlines() if line.strip()]
        header = [column.strip().lower() for column in re.split(r"[,\t]", lines[0])] if lines else []
        if header[:1] == ["idx"] or set(header) in ({"name", "r", "g", "b"}, {"pixel value", "class"}):
            rows = csv.reader(lines[1:], delimiter="\t" if "\t" in lines[0] else ",")
            return _of_table([dict(zip(header, (cell.strip() for cell in row), strict=False)) for row in rows])
        colored = [re.fullmatch(r"(.+?):(\d+),(\d+),(\d+):.*", line) for line in lines if not line.startswith("#")]
        if colored and all(colored):
            found = [match.groups() for match in colored if match]
            return _with_palette(tuple(name for name, *_ in found), [tuple(map(int, color)) for _, *color in found])
        return ClassList(tuple(read_class_map(path).values()))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:  # ValueError: no JSON, no UTF-8
        raise DataError(f"{path}: cannot be read as a list of classes: {error}") from error


def _of_json(content: Any) -> ClassList:
    if isinstance(content, list):
        content = {"classes": content}
    named, ignored, palette = content["classes"], content.get("ignore_index"), content.get("palette")
    if not (named and all(isinstance(name, str) for name in named) and isinstance(ignored, int | None)):
        raise ValueError("it must be a list of names, or have one as classes and a number as ignore_index")
    names = tuple(named)
    if isinstance(palette, dict):
        if set(palette) != set(names):
            raise ValueError("palette must have a color for each of the classes, or list the colors in their order")
        palette = [palette[name] for name in names]
    return _with_palette(names, palette)._replace(ignore_index=ignored)


def _of_table(rows: Sequence[dict[str, str]]) -> ClassList:
    if "idx" in rows[0]:
        return ClassList(tuple(row["name"].partition(";")[0].strip() for row in rows))
    if "r" in rows[0]:
        colors = [(int(row["r"]), int(row["g"]), int(row["b"])) for row in rows]
        return _with_palette(tuple(row["name"] for row in rows), colors)
    names = {int(row["pixel value"]): row["class"] for row in rows}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"pixel values must count from 0, not be {sorted(names)}")
    return ClassList(tuple(names[number] for number in range(len(names))))


def _with_palette(names: tuple[str, ...], colors: Any) -> ClassList:
    """The classes with their colors; a color is three numbers, or text such as ``"#0000ff"``."""
    if colors is None:
        return ClassList(names)
    palette: dict[tuple[int, int, int], int] = {}
    for number, color in enumerate(colors):
        if isinstance(color, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            color = tuple(bytes.fromhex(color[1:]))
        if not (isinstance(color, list | tuple) and len(color) == 3 and all(type(c) is int for c in color)):
            raise ValueError(f"palette: {color!r} is not a color, which is [red, green, blue] from 0 to 255")
        if min(color) < 0 or max(color) > 255:
            raise ValueError(f"palette: {color} is not a color, which is [red, green, blue] from 0 to 255")
        red, green, blue = color
        if palette.setdefault((red, green, blue), number) != number:
            raise ValueError(f"palette: {color} is the color of two classes")
    return ClassList(names, None, palette)
