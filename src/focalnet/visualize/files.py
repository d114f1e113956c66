"""Saves images, and makes unique file names."""

from __future__ import annotations

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


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """A unique name for each file, without suffix: ``cat``, ``dog``, ``cat-2``.

    Names that differ only in case, or in how Unicode composes letters, count as equal, as on some file systems. Long
    names are cut, to leave room for an ending; bytes that are not UTF-8 become ``_``.
    """
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = cut(os.fsencode(Path(path).stem).decode(errors="replace").replace("\N{REPLACEMENT CHARACTER}", "_"), 200)
        name, n = stem, 1
        while (key := unicodedata.normalize("NFC", name).casefold()) in taken:
            n += 1
            name = f"{stem}-{n}"
        taken.add(key)
        names.append(name)
    return names
