"""Saves images, and makes unique file names."""

from __future__ import annotations

import glob
import itertools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from focalnet.errors import ConfigError
from focalnet.files import atomic, cut

if TYPE_CHECKING:
    from PIL.Image import Image


def save_image(image: Image, path: str | Path) -> Path:
    """Writes an image; an interrupted or failed write leaves an existing file unchanged.

    Args:
        image: in a mode that the format supports.
        path: target; its suffix determines the format, and missing folders are created.

    Raises:
        ConfigError: the suffix is not that of an image format.
        FocalNetError: the target cannot be written.
    """
    from PIL import Image as Pillow

    path = Path(path)
    suffixes = Pillow.registered_extensions()
    if suffixes.get(path.suffix.lower()) not in Pillow.SAVE:
        raise ConfigError(f'cannot save an image as "{path}": end the name in .png, .jpg or .webp')
    with atomic(path) as part:
        image.save(part, format=suffixes[path.suffix.lower()])
    return path


def unique_names(paths: Sequence[str | Path], below: Sequence[str | Path] = ()) -> list[str]:
    """A unique name for each file, without suffix: ``cat``, ``dog``, ``cat-2``, ``more/cat``.

    Names that differ only in case, or in how Unicode composes letters, count as equal, as on some file systems. Long
    names are cut, to leave room for an ending; bytes that are not UTF-8 become ``_``.

    Args:
        paths: of the files.
        below: folders and patterns that they were looked for in; subfolders of these are part of the names.
    """
    names: list[str] = []
    taken: set[str] = set()
    bases = [base for one in below if (base := _base(Path(one))) is not None]
    for path in map(Path, paths):
        base = next((base for base in bases if path.is_relative_to(base)), path.parent)
        stem = "/".join(map(_readable, path.relative_to(base).with_suffix("").parts))
        name, n = stem, 1
        while (key := unicodedata.normalize("NFC", name).casefold()) in taken:
            n += 1
            name = f"{stem}-{n}"
        taken.add(key)
        names.append(name)
    return names


def _base(place: Path) -> Path | None:
    """The folder whose subfolders are part of names: of a pattern, the one before its first wildcard."""
    if place.is_dir():
        return place
    if place.exists() or not glob.has_magic(str(place)):
        return None
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), place.parts)
    return Path(*plain)


def _readable(part: str) -> str:
    return cut(os.fsencode(part).decode(errors="replace").replace("\N{REPLACEMENT CHARACTER}", "_"), 200)
