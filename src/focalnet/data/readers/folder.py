"""Folders of images: ``root/split/class/image.jpg``, or ``root/class/image.jpg`` without splits."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from timm.data.readers.reader_factory import create_reader

from focalnet.data.images import SUFFIXES
from focalnet.data.readers.classes import class_name, number_classes
from focalnet.data.readers.source import Source
from focalnet.errors import DataError

logger = logging.getLogger(__name__)

#: Images that Pillow alone does not open.
UNREAD = frozenset(".arw .cr2 .cr3 .dcm .dng .exr .heic .heif .jxl .nef .npy .psd .raw .svg".split())


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
        self._check_parents(folder)
        self._tell_unread(folder)
        label_of, class_names = number_classes(names, titles, str(folder))
        super().__init__(str(folder), class_names, [label_of[name] for name in names])

    def _check_parents(self, folder: Path) -> None:
        """Raises ``DataError`` where folders of the same name lie under several others: one class, or many?"""
        found: dict[str, Path] = {}
        parents = dict.fromkeys(path.parent for path in self._paths)
        for parent in parents:
            if parent.parent in parents:
                logger.warning(
                    '%s: has images, and so has the folder "%s" in it, which is a class of its own',
                    *(parent.parent, parent.name),
                )
            other = found.setdefault(class_name(parent.name), parent)
            if other != parent and other.parent != parent.parent:
                places = f"{other.relative_to(folder)}, {parent.relative_to(folder)}"
                raise DataError(
                    f'{folder}: the class folder "{parent.name}" lies under several folders ({places}); put '
                    f"the images of each class in one folder, {folder}/<class>/"
                )

    def _tell_unread(self, folder: Path) -> None:
        """Warns of class folders that lose files, or have none."""
        for place, folders, files in os.walk(folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            shown = [Path(name).suffix.lower() for name in files if not name.startswith(".")]
            unread = sorted({suffix for suffix in shown if suffix in UNREAD})
            if unread:
                count = sum(suffix in UNREAD for suffix in shown)
                logger.warning("%s: %d files are not read (%s); save them as PNG", place, count, " ".join(unread))
            elif not shown and not folders and Path(place) != folder:
                logger.warning("%s: is empty, so it is not a class", place)

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
