"""Folders of images: ``root/split/class/image.jpg``, or ``root/class/image.jpg`` without splits."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from timm.utils.misc import natural_key

from focalnet.data.images import SUFFIXES, UNREAD, is_loop, list_folder
from focalnet.data.readers.classes import class_name, is_like_split, number_classes
from focalnet.data.readers.source import Source
from focalnet.errors import DataError

logger = logging.getLogger(__name__)

#: Folders that programs leave behind.
NO_DATA = ("__macosx", "__pycache__")


def splits(root: Path) -> list[str]:
    """Names of the subfolders that hold folders themselves; empty where the classes lie in the root."""
    return sorted(child.name for child in list_folders(root) if list_folders(child))


class Folder(Source):
    """An image's class is the name of the folder it lies in, at any depth; hidden ones are passed over."""

    def __init__(self, folder: Path, titles: Mapping[str, str] | None = None) -> None:
        paths = sorted(list_folder(folder), key=lambda path: natural_key(str(path)))  # type: ignore[no-untyped-call]
        if not paths:
            raise DataError(f"{folder}: no images there (looked for {' '.join(SUFFIXES)})")
        visible = [path for path in paths if not _is_hidden(path.relative_to(folder))]
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
                    f'{folder}: the class folder "{parent.name}" lies under several folders ({places}); '
                    + _way_out(folder, other, parent)
                )
        if len({parent.parent for parent in parents}) > 1:
            nested = next(parent for parent in parents if parent.parent != folder)
            logger.warning(
                "%s: has class folders within other folders, e.g. %s: the innermost folder is the class",
                *(folder, nested.relative_to(folder)),
            )

    def _tell_unread(self, folder: Path) -> None:
        """Warns of class folders that lose files, or have none."""
        for place, folders, files in os.walk(folder, followlinks=True):
            shown_folders = (name for name in folders if not name.startswith("."))
            folders[:] = sorted(name for name in shown_folders if not is_loop(Path(place, name), folder))
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


def _way_out(folder: Path, one: Path, other: Path) -> str:
    """What to do about two class folders of one name; what may be splits is never to be merged."""
    parts, others = one.relative_to(folder).parts, other.relative_to(folder).parts
    if is_like_split(one.name):
        return f"the splits are to be above the classes, not below: {one.name}/<class>/"
    if not any(map(is_like_split, (*parts, *others))):
        return f"put the images of each class in one folder, {folder}/<class>/"
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(parts, others, strict=False)))
    names = " and ".join(sorted({parts[same], others[same]}))
    if not (is_like_split(parts[same]) and is_like_split(others[same])):
        return "folders of splits must lie right below data.root, as train/<class>/, val/<class>/"
    if same:
        return f"if {names} are splits, give the folder they are in as data.root: {folder.joinpath(*parts[:same])}"
    return f"if {names} are splits, call them train, val or test, or name them by data.train_split and data.val_split"


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part.casefold() in NO_DATA for part in path.parts)


def list_folders(folder: Path) -> list[Path]:
    """Subfolders that are not hidden."""
    try:
        return [child for child in folder.iterdir() if child.is_dir() and not _is_hidden(Path(child.name))]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error
