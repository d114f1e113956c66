"""Tar files of images: ``split.tar``, or ``split/*.tar`` (one a class, as ImageNet comes), or tars without splits."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from timm.data.readers.reader_image_in_tar import extract_tarinfos

from focalnet.data.images import SUFFIXES
from focalnet.data.readers.classes import number_classes
from focalnet.data.readers.source import Source
from focalnet.errors import DataError


def splits(root: Path) -> list[str]:
    """Names of the tar files, and of the folders with tar files; empty where the root is a tar file itself."""
    if root.is_file():
        return []
    return sorted({path.stem for path in root.glob("*.tar")} | {path.parent.name for path in root.glob("*/*.tar")})


def split_path(root: Path, split: str) -> Path:
    """Where a split is."""
    archive = root / f"{split}.tar"
    return archive if archive.is_file() else root / split


class Tar(Source):
    """The images of a tar file, of a folder of tar files, or of tar files within one; uncompressed.

    timm lists them. An image's class is the folder it lies in, or the tar file if it lies in none. Reading
    opens the file anew and takes the bytes from where the list says they are: workers share no open file.
    """

    def __init__(self, root: Path, titles: Mapping[str, str] | None = None) -> None:
        try:
            listed, labels, numbers, _ = extract_tarinfos(str(root), extensions=SUFFIXES)
        except (tarfile.TarError, OSError, AssertionError) as error:  # the last: timm's, where it is no .tar
            raise DataError(f"{root}: cannot be read as a tar file: {error}") from error
        except ValueError:  # timm's when it finds no image
            raise DataError(f"{root}: no images there (looked for {' '.join(SUFFIXES)})") from None
        class_of = {label: name for name, label in numbers.items()}
        found: dict[tuple[Path, str], tuple[Path, int, int, str, str]] = {}  # file, offset, size, path inside, class
        for (member, archive, parent), label in zip(listed, labels.tolist(), strict=True):
            if PurePosixPath(member.path).name.startswith("."):
                continue
            file = root / archive if archive else root
            inside = f"{parent.path}/{member.path}" if parent else member.path
            offset = member.offset_data + (parent.offset_data if parent else 0)
            known = found.get((file, inside))
            if known is None or known[1] < offset:  # of a path that is packed again, the last counts
                found[file, inside] = (file, offset, member.size, inside, class_of[label])
        self._members = sorted(found.values(), key=lambda member: (str(member[0]), member[3]))
        names = [member[4] for member in self._members]
        if "" in names:
            raise DataError(f"{root}: has images outside any class folder; pack them as <class>/<image>")
        label_of, class_names = number_classes(names, titles, str(root))
        super().__init__(str(root), class_names, [label_of[name] for name in names])

    def content(self, index: int) -> bytes:
        file, offset, size, _, _ = self._members[index]
        with file.open("rb") as archive:
            archive.seek(offset)
            return archive.read(size)

    def path(self, index: int) -> str:
        return f"{self._members[index][0]}/{self._members[index][3]}"
