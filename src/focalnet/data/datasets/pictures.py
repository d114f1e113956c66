"""Where the pictures of an annotation file are: a folder, or a tar file."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from focalnet.errors import DataError


class Pictures(ABC):
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
    def __contains__(self, name: str) -> bool: ...


class FolderOfPictures(Pictures):
    """A name is a path below the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def content(self, name: str) -> Path:
        return self.folder / name

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def __contains__(self, name: str) -> bool:
        try:
            return (self.folder / name).is_file()
        except OSError:  # longer than a file name can be
            return False


class TarOfPictures(Pictures):
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

    def below(self, folder: str) -> TarOfPictures:
        """The same archive, with names below another folder of it."""
        other = object.__new__(TarOfPictures)
        other.archive, other.folder, other._places = self.archive, PurePosixPath(folder), self._places
        return other

    def content(self, name: str) -> bytes:
        offset, size = self._places[str(self.folder / name)]
        with self.archive.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def path(self, name: str) -> str:
        return f"{self.archive}/{self.folder / name}"

    def __contains__(self, name: str) -> bool:
        return str(self.folder / name) in self._places


def find_pictures(root: Path, annotations: Path, names: Sequence[str], wanted: str | None = None) -> Pictures:
    """Finds where the files named in an annotation file are.

    Tried are, for ``annotations/instances_train.json``: the folders ``train``, ``images/train``, ``images`` and
    ``train/images`` of the root, the root, the folder of the annotation file, and the same in tar files of the root.

    Args:
        root: the folder of the data set.
        annotations: the annotation file.
        names: file names in it; the place where most of the first hundred are is taken.
        wanted: the folder or tar file, relative to the root; nothing else is tried.

    Raises:
        DataError: none of them is anywhere.
    """
    candidates = list(_candidates(root, annotations, wanted))
    some = list(names[:100])
    counts = [sum(name in place for name in some) for place in candidates]
    if not candidates or not max(counts):
        looked = ", ".join(dict.fromkeys(place.path("") for place in candidates)) or root / (wanted or "")
        raise DataError(
            f"{annotations}: none of its images ({some[0]}, ...) is there; looked in {looked}; "
            "data.images names the folder or tar file"
        )
    return candidates[counts.index(max(counts))]


def _candidates(root: Path, annotations: Path, wanted: str | None) -> Iterator[Pictures]:
    split = annotations.stem.removeprefix("instances_")
    folders = [split, f"images/{split}", "images", f"{split}/images", ""]
    if wanted is None:
        yield from (FolderOfPictures(root / folder) for folder in folders if (root / folder).is_dir())
        yield FolderOfPictures(annotations.parent)
        archives = sorted(root.glob("*.tar"))
    elif (root / wanted).is_dir():
        yield FolderOfPictures(root / wanted)
        return
    else:
        archives = [root / wanted]
    for archive in archives:
        whole = TarOfPictures(archive)
        yield from (whole.below(folder) for folder in folders)
