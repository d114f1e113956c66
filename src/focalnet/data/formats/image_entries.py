"""The images that annotation files list: their ids, their files, and a check of their sizes against the files."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from PIL import Image

from focalnet.data import images as decoding
from focalnet.data.formats.problems import Report
from focalnet.data.readers.file_names import last_parts
from focalnet.data.readers.image_files import ImageFiles
from focalnet.errors import ImageError
from focalnet.reading import whole_number

#: One entry of ``annotations``, as it is in the file: ``bbox``, ``category_id``, ``segmentation``, ``iscrowd``.
Annotation: TypeAlias = dict[str, Any]

#: As it is in the file: most are numbers, those of Cityscapes and ADE20K are text.
Id: TypeAlias = int | str

LARGEST_IMAGE = 2**28  # pixels; beyond what Pillow opens


@dataclass(frozen=True)
class Annotated:
    """One image of an annotation file with its usable annotations, sizes in pixels; 0 where the file gives none."""

    image_id: Id
    file_name: str
    height: int
    width: int
    annotations: list[Annotation] = field(default_factory=list)

    @property
    def has_size(self) -> bool:
        """Whether the annotation file gives the size."""
        return self.height > 0 and self.width > 0

    def __str__(self) -> str:
        return f"image {self.image_id} ({self.file_name})"


def as_id(value: Any) -> Id | None:
    """Converts a value to an id; 3.0, as table programs write it, becomes 3. None if it cannot be an id."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if is_whole(value) else None


def known_id(value: Any, known: Mapping[Id, Any]) -> Id | None:
    """Finds the known id that a value refers to, even if a number was written as text or text as a number."""
    number = as_id(value)
    if number in known:
        return number
    if isinstance(number, int):
        return str(number) if str(number) in known else None
    if isinstance(number, str):
        number = whole_number(number)
        return number if number in known else None
    return None


def in_order(ids: Sequence[Id]) -> list[Id]:
    """Sorts ids by number, including numbers written as text; other text comes last."""

    def key(number: Id) -> tuple[bool, int, str]:
        value = number if isinstance(number, int) else whole_number(number)
        return value is None, value or 0, str(number)

    return sorted(ids, key=key)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def by_id(
    entries: Sequence[Any], item: str, problem: Callable[[Mapping[str, Any]], str | None], report: Report
) -> tuple[dict[Id, dict[str, Any]], set[Id]]:
    """Returns the usable entries by id, and the ids of the unusable ones.

    Args:
        entries: of one list of an annotation file.
        item: what messages call one.
        problem: says what is wrong with an entry, if anything.
        report: takes it. Of entries that share an id and are not the same, none can be used.
    """
    found: dict[Id, dict[str, Any]] = {}
    refused: set[Id] = set()
    for place, entry in enumerate(entries, start=1):
        number = as_id(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            report(f"{item} number {place}", 'has no "id" that is a whole number or text')
            continue
        name = f"{item} {number}" + (f" ({entry['file_name']})" if isinstance(entry.get("file_name"), str) else "")
        if number in found or number in refused:
            report(name, f"its id {number} is given twice")
            if found.get(number) != entry:
                refused.add(number)
        elif what := problem(entry):
            report(name, what)
            refused.add(number)
        else:
            found[number] = entry
    return {number: entry for number, entry in found.items() if number not in refused}, refused


def read_images(entries: Sequence[Any], report: Report) -> tuple[dict[Id, Annotated], set[Id]]:
    """Returns the usable images of an annotation file by id, and the ids of the unusable ones."""
    listed, refused = by_id(entries, "image", _problem, report)
    images: dict[Id, Annotated] = {}
    uses = Counter(_file_name(entry) for entry in listed.values())
    for number, entry in listed.items():
        name = _file_name(entry)
        assert name is not None
        images[number] = Annotated(number, name, _side(entry, "height"), _side(entry, "width"))
        if uses[name] > 1:  # each would be trained on without the other's objects
            report(str(images[number]), f"{uses[name]} images have this file_name; give a file one entry")
            refused.add(number)
    return {number: image for number, image in images.items() if number not in refused}, refused


def _problem(entry: Mapping[str, Any]) -> str | None:
    if _file_name(entry) is None:
        return "has no file_name"
    height, width = entry.get("height"), entry.get("width")
    for side in (height, width):
        if side not in (None, 0) and not (isinstance(side, float) and side.is_integer()) and not is_whole(side):
            return f"its height and width are {height!r:.40} and {width!r:.40}, not pixels"
    if min(_side(entry, "height"), _side(entry, "width")) < 0:
        return f"its height and width are {height!r:.40} and {width!r:.40}, not pixels"
    if _side(entry, "height") * _side(entry, "width") > LARGEST_IMAGE:
        return f"its height and width are {height!r:.40} and {width!r:.40}, too large for an image"
    return None


def _file_name(entry: Mapping[str, Any]) -> str | None:
    """The path of the image. LVIS gives a URL instead, which ends in the path."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    if not (isinstance(name, str) and name.strip()) and isinstance(address, str) and address:
        name = last_parts(address, 2)
    return name if isinstance(name, str) and name.strip() and "\0" not in name else None


def _side(entry: Mapping[str, Any], key: str) -> int:
    return int(entry.get(key) or 0)


class Header(NamedTuple):
    """Size and Exif orientation of an image, read without decoding its pixels."""

    height: int  # upright
    width: int
    orientation: int  # Exif's, 1 for upright


def locate(
    images: Mapping[Id, Annotated],
    files: ImageFiles,
    report: Report,
    remarks: list[str],
    *,
    other_splits: frozenset[str] = frozenset(),
    compare: bool = True,
    measured: bool = False,
) -> dict[Id, Annotated]:
    """Finds the files of images, and keeps the images whose file exists and has the annotated size.

    Args:
        images: by id.
        files: where they are.
        report: called with each problem.
        remarks: a line is appended for each assumption.
        other_splits: names of folders that belong to other splits.
        compare: compare all sizes with the files; if false, only files whose size is not annotated are opened.
        measured: the sizes are those of the files, so that they do not tell what annotations refer to.

    Returns:
        By id, with the names and sizes of the files.
    """
    matches = files.match([image.file_name for image in images.values()], other_splits)
    if remark := matches.remark():
        remarks.append(remark)
    there = [replace(i, file_name=matches.files[i.file_name]) for i in images.values() if i.file_name in matches.files]
    opened = [image for image in there if compare or not image.has_size]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = pool.map(lambda image: _header(files, image.file_name), opened)
        headers: dict[Id, Header | str] = {i.image_id: Header(i.height, i.width, 1) for i in there}
        headers |= dict(zip([image.image_id for image in opened], read, strict=True))
    uses = Counter(posixpath.normpath(file) for file in matches.files.values())
    found: dict[Id, Annotated] = {}
    turned = without_size = 0
    for image in images.values():
        if image.file_name in matches.ambiguous:
            report(str(image), matches.why_ambiguous(image.file_name))
            continue
        header = headers.get(image.image_id)
        if header is None:
            report(str(image), f"no such file {files.path(image.file_name)}")
            continue
        if isinstance(header, str):
            report(str(image), header)
            continue
        name = matches.files[image.file_name]
        if (count := uses[posixpath.normpath(name)]) > 1:  # each would be trained on without the other's objects
            report(str(image), f"{count} images have the file {files.path(name)}; give a file one entry")
            continue
        if image.has_size and (what := _other_size(image, header)):
            report(str(image), f"{files.path(name)}: {what}")
            continue
        confirmed = image.has_size and not measured and header.height != header.width
        turned += (header.orientation >= 5 and not confirmed) or 1 < header.orientation < 5
        without_size += not image.has_size
        found[image.image_id] = replace(image, file_name=name, height=header.height, width=header.width)
    if without_size:
        remarks.append(f"{without_size} images have no size in it; the sizes of the files are used")
    if turned:
        remarks.append(
            f"{turned} images are turned by their Exif orientation, which the sizes cannot confirm; their annotations "
            "should refer to the upright images: if not, remove the orientation (exiftool -Orientation= FILES)"
        )
    return found


def _header(files: ImageFiles, name: str) -> Header | str:
    """The header of an image, or the reason why it cannot be read."""

    def convert(image: Image.Image) -> Header:
        return Header(*decoding.upright_size(image), decoding.orientation(image))

    path = files.path(name)
    try:
        return decoding.decode(files.content(name), path, convert)
    except (OSError, KeyError) as error:
        return f"{path}: cannot be read: {error}"
    except ImageError as error:
        return str(error)


def _other_size(image: Annotated, header: Header) -> str | None:
    if (header.height, header.width) == (image.height, image.width):
        return None
    what = (
        f"has {header.width} x {header.height} pixels, its annotations (image {image.image_id}) are for "
        f"{image.width} x {image.height}"
    )
    if header.orientation >= 5 and (header.width, header.height) == (image.height, image.width):
        what += (
            ", which is its size without the rotation by its Exif orientation: if they refer to the rotated image, "
            "swap height and width in the annotations, else remove the orientation (exiftool -Orientation= FILES)"
        )
    return what


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
