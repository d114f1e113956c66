"""Files that are either whole or absent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from focalnet.errors import ConfigError, FocalNetError

if TYPE_CHECKING:
    from PIL.Image import Image


def save_image(image: Image, path: str | Path) -> Path:
    """Writes a picture; an interrupted or failed write leaves whatever was there before.

    Args:
        image: the picture.
        path: where to; its suffix chooses the format; missing folders are made.

    Raises:
        ConfigError: a suffix that names no format.
        FocalNetError: the target cannot be written.
    """
    from PIL import Image as Pillow

    path = Path(path)
    suffixes = Pillow.registered_extensions()
    if suffixes.get(path.suffix.lower()) not in Pillow.SAVE:
        raise ConfigError(f'cannot save a picture as "{path}": end the name in .png, .jpg or .webp')
    with writing(path) as file:
        image.save(file, format=suffixes[path.suffix.lower()])
    return path


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name only when the body of the ``with`` statement has ended well.

    Raises:
        FocalNetError: the target cannot be written; nothing is left behind.
    """
    path = Path(path)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FocalNetError(f'cannot write "{path}": {reason}; choose another place or make room there') from error
    finally:
        with suppress(OSError):  # already renamed, or its folder could not be made
            part.unlink()


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """A name for each file, without suffix, that no other has: ``cat``, ``dog``, ``cat-2``.

    Names that differ in case only count as equal, as they do on some file systems.
    """
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = Path(path).stem
        name, n = stem, 1
        while name.casefold() in taken:
            n += 1
            name = f"{stem}-{n}"
        taken.add(name.casefold())
        names.append(name)
    return names
