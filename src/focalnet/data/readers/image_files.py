"""Where the images of an annotation file are: a folder, or a tar file."""

from __future__ import annotations

import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from focalnet.data import images
from focalnet.data.readers.collection import SYNONYMS
from focalnet.data.readers.file_names import NameMatches, match_names
from focalnet.errors import DataError


class ImageFiles(ABC):
    """Files by the names that annotations give them."""

    @abstractmethod
    def content(self, name: str) -> Path | bytes:
        """The file, or what is in it.

        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def path(self, name: str) -> str:
        """Where the file is, or would be."""

    @abstractmethod
    def below(self, folder: str) -> ImageFiles:
        """The files below another folder of the same place."""

    @abstractmethod
    def names(self, suffixes: Sequence[str] = images.SUFFIXES) -> list[str]:
        """Every image's, or those of other suffixes, sorted; hidden files are passed over."""

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    def match(self, names: Sequence[str], other_splits: frozenset[str] = frozenset()) -> NameMatches:
        """The files that names mean, in whatever spelling; see ``file_names``. They are listed only if need be.

        Args:
            names: as they are written.
            other_splits: in folders of these names no other spelling is looked for: they are of other splits.
        """
        exact = [name for name in names if name in self]
        if len(exact) == len(names):
            return NameMatches({name: name for name in names}, {})
        others = (file for file in self.names() if other_splits.isdisjoint(file.casefold().split("/")[:-1]))
        return match_names(names, [*exact, *others])


class FolderOfImages(ImageFiles):
    """A name is a path below the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def content(self, name: str) -> Path:
        return self.folder / name

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def below(self, folder: str) -> FolderOfImages:
        return FolderOfImages(self.folder / folder)

    def names(self, suffixes: Sequence[str] = images.SUFFIXES) -> list[str]:
        if not self.folder.is_dir():
            return []
        return [path.relative_to(self.folder).as_posix() for path in images.list_folder(self.folder, suffixes)]

    def __contains__(self, name: str) -> bool:
        try:
            return (self.folder / name).is_file()
        except OSError:  # longer than a file name can be
            return False


class TarOfImages(ImageFiles):
    """A name is a path below a folder of an uncompressed tar file; each read opens it anew: workers share no file."""

    def __init__(self, archive: Path, folder: str = "") -> None:
        self.archive, self.folder = archive, PurePosixPath(folder)
        try:
            with tarfile.open(archive, "r:") as members:
                self._places = {
                    str(PurePosixPath(m.name)): (m.offset_data, m.size) for m in members if m.isfile() and not m.sparse
                }
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{archive}: cannot be read as an uncompressed tar file: {error}") from error

    def below(self, folder: str) -> TarOfImages:
        other = object.__new__(TarOfImages)
        other.archive, other.folder, other._places = self.archive, PurePosixPath(folder), self._places
        return other

    def content(self, name: str) -> bytes:
        offset, size = self._places[str(self.folder / name)]
        with self.archive.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def path(self, name: str) -> str:
        return f"{self.archive}/{self.folder / name}"

    def names(self, suffixes: Sequence[str] = images.SUFFIXES) -> list[str]:
        inside = (PurePosixPath(place) for place in self._places)
        below = (path.relative_to(self.folder) for path in inside if path.is_relative_to(self.folder))
        return sorted(str(p) for p in below if p.suffix.lower() in suffixes and not hidden(p))

    def __contains__(self, name: str) -> bool:
        return str(self.folder / name) in self._places


def hidden(path: PurePath) -> bool:
    """Whether a file, or a folder it is in, begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def other_splits(annotations: Path) -> frozenset[str]:
    """What the splits are called that an annotation file is not of; none where its name does not say of which it is."""
    names = {re.sub(r"\d+$", "", part).casefold() for part in (split_name(annotations), annotations.parent.name)}
    own = [split for split, synonyms in SYNONYMS.items() if names & set(synonyms)]
    return frozenset(name for split, usual in SYNONYMS.items() for name in usual if len(own) == 1 and split not in own)


def split_name(annotations: Path) -> str:
    """What an annotation file calls its split: ``train2017`` of ``instances_train2017.json``."""
    return re.sub(r"^(instances|panoptic|ade20k_panoptic|cityscapes_panoptic|lvis_v[^_]*)_", "", annotations.stem)


def find_images(root: Path, annotations: Path, names: Sequence[str], wanted: str | None = None) -> ImageFiles:
    """Finds where the images named in an annotation file are.

    Tried are, for ``annotations/instances_train.json``: the folders ``train``, ``images/train``, ``images`` and
    ``train/images`` of the root, ``images/training`` (ADE20K), ``leftImg8bit/train`` (Cityscapes) and ``data``
    (FiftyOne), the root, the folder of the annotation file, and the same in tar files of the root.

    Args:
        root: the folder of the data set.
        annotations: the annotation file.
        names: file names in it; the place where most of the first hundred are is taken, in whatever spelling where
            no name is that of a file.
        wanted: the folder or tar file, relative to the root; nothing else is tried.

    Raises:
        DataError: none of them is anywhere.
    """
    split = split_name(annotations)
    same = next((names for names in SYNONYMS.values() if split in names), ())
    folders = [split, f"images/{split}", "images", f"{split}/images", *(f"images/{name}" for name in same)]
    folders += [f"leftImg8bit/{split}", "data", ""]
    beside = annotations.parent
    candidates = _candidates(root, folders, beside, wanted)
    where = _Search("images", f"{annotations}: none of its images", other_splits(annotations), (root, beside))
    return _most(names, candidates, where)


def find_maps(root: Path, annotations: Path, names: Sequence[str], wanted: str | None = None) -> ImageFiles:
    """Finds where the PNG files named in a panoptic annotation file are.

    Tried are, for ``annotations/panoptic_train.json``: the folders ``annotations/panoptic_train`` and
    ``panoptic_train`` of the root, and the same in tar files of the root.

    Args:
        root: the folder of the data set.
        annotations: the annotation file.
        names: file names in it; the place where most of the first hundred are is taken.
        wanted: the folder or tar file, relative to the root; nothing else is tried.

    Raises:
        DataError: none of them is anywhere.
    """
    folders = [annotations.stem, f"annotations/{annotations.stem}"]
    beside = annotations.with_suffix("")
    candidates = _candidates(root, folders, beside, wanted)
    where = _Search("maps", f"{annotations}: none of its PNG files", other_splits(annotations), (root, beside))
    return _most(names, candidates, where)


class _Search(NamedTuple):
    option: str  # that names the place
    none_of: str  # how a message begins
    other_splits: frozenset[str]
    above: tuple[Path, ...]  # folders that hold everything: a file deeper down is not what a mere name means


def _most(names: Sequence[str], candidates: Iterable[ImageFiles], search: _Search) -> ImageFiles:
    """The place where most of the first hundred files are."""
    places, some = list(candidates), list(names[:100])
    counts = [sum(name in place for name in some) for place in places]
    if not any(counts):
        counts = [_respelled(some, place, search) for place in places]
    if not any(counts):
        looked = ", ".join(dict.fromkeys(place.path("") for place in places))
        raise DataError(
            f"{search.none_of} ({some[0]}, ...) is there; looked in {looked}; data.{search.option} names the folder or "
            "tar file"
        )
    return places[counts.index(max(counts))]


def _respelled(names: Sequence[str], place: ImageFiles, search: _Search) -> int:
    """How many names mean a file of a place in another spelling."""
    files = place.match(names, search.other_splits).files
    if isinstance(place, FolderOfImages) and place.folder in search.above:
        files = {name: file for name, file in files.items() if file.count("/") <= name.replace("\\", "/").count("/")}
    return len(files)


def _candidates(root: Path, folders: Sequence[str], beside: Path, wanted: str | None) -> Iterator[ImageFiles]:
    if wanted is None:
        yield from (FolderOfImages(root / folder) for folder in folders if (root / folder).is_dir())
        yield FolderOfImages(beside)
        archives = sorted(root.glob("*.tar"))
    elif (root / wanted).is_dir():
        yield FolderOfImages(root / wanted)
        return
    else:
        archives = [root / wanted]
    for archive in archives:
        whole = TarOfImages(archive)
        yield from (whole.below(folder) for folder in folders)
