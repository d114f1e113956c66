"""Folders of images: ``root/split/class/image.jpg``, or ``root/class/image.jpg`` without splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from timm.data.readers.reader_factory import create_reader

from focalnet.data.images import SUFFIXES
from focalnet.data.readers.classes import number_classes
from focalnet.data.readers.source import Source
from focalnet.errors import DataError

logger = logging.getLogger(__name__)


def splits(root: Path) -> list[str]:
    """Names of the subfolders that hold folders themselves; empty where the classes lie in the root."""
    return sorted(child.name for child in list_folders(root) if list_folders(child))


class Folder(Source):
    """An image's class is the name of the folder it lies in, at any depth; hidden ones are passed over."""

    def __init__(self, folder: Path, titles: Mapping[str, str] | None = None) -> None:
        try:
            reader = create_reader("", root=str(folder), input_key=";".join(SUFFIXES))
        except RuntimeError:
            raise DataError(f"{folder}: no images there (looked for {' '.join(SUFFIXES)})") from None
        paths = [Path(path) for path, _ in reader.samples]
        visible = [p for p in paths if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
        self._paths = [path for path in visible if path.parent != folder]
        if visible and not self._paths:
            raise DataError(f"{folder}: has images but no class folders; put them in {folder}/<class>/")
        if len(self._paths) < len(visible):
            logger.warning("%s: left out %d images outside any class folder", folder, len(visible) - len(self._paths))
        names = [path.parent.name for path in self._paths]
        label_of, class_names = number_classes(names, titles, str(folder))
        super().__init__(str(folder), class_names, [label_of[name] for name in names])

    def content(self, index: int) -> Path:
        return self._paths[index]

    def path(self, index: int) -> str:
        return str(self._paths[index])


def list_folders(folder: Path) -> list[Path]:
    """Subfolders that are not hidden."""
    try:
        return [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error
