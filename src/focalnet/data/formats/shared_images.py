"""Images that several splits of a data set share: metrics of those that were trained on are too high."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data import images as decoding
from focalnet.errors import ImageError

#: A file, what is in it, or the decoded image.
Content: TypeAlias = Path | bytes | Image.Image

_EDGE = 1 << 16  # bytes of a file that are compared before all of it is
_SIDE = 32  # pixels of the thumbnails that are compared
_FLAT = 1.0  # standard deviation of gray values, 0 to 255, of images without anything to compare
#: Correlation of two thumbnails from which on images are the same, compressed or scaled anew. That of CamVid's frames
#: one second apart is 0.994; of re-encoded ones (JPEG of quality 40, a third of the size), 0.998 and more.
_SAME = 0.997
_ROWS = 1024  # thumbnails compared at a time
_SHOWN = 3  # pairs that a message shows


@dataclass(frozen=True)
class _File:
    split: int
    name: str
    content: Callable[[], Content]


class SharedImages:
    """Compares the images of the splits of a data set: their bytes, and if they are decoded, what they show.

    Args:
        decode: also find images that were compressed or scaled anew. Images of one gray are not compared then.
    """

    def __init__(self, *, decode: bool) -> None:
        self.decode = decode
        self._names: list[str] = []
        self._files: list[_File] = []

    def add(self, split: str, files: Iterable[tuple[str, Callable[[], Content]]]) -> None:
        """Adds a split.

        Args:
            split: what messages call it.
            files: the name of each image, and a function that opens it.
        """
        self._files += [_File(len(self._names), name, content) for name, content in files]
        self._names.append(split)

    def remarks(self) -> list[str]:
        """One line for each two splits that share images."""
        pairs: dict[tuple[int, int], dict[str, str]] = defaultdict(dict)
        if len(self._names) > 1:
            for one, other in [*self._same_bytes(), *(self._same_content() if self.decode else ())]:
                pairs[one.split, other.split].setdefault(other.name, one.name)
        return [
            f"{self._names[later]}: {len(shared)} of its images {'is' if len(shared) == 1 else 'are'} also in "
            f"{self._names[first]} (metrics of images that were trained on are too high): {_shown(shared)}"
            for (first, later), shared in sorted(pairs.items())
        ]

    def _same_bytes(self) -> Iterator[tuple[_File, _File]]:
        """Files of two splits with the same bytes. Few have the same size, and only these are read."""
        groups = [self._files]
        for key in (_size, _edge, _digest):
            groups = [part for group in groups for part in _grouped(group, key) if len({f.split for f in part}) > 1]
        for group in groups:
            first_of: dict[int, _File] = {}
            for file in group:
                first_of.setdefault(file.split, file)
                yield from ((one, file) for split, one in first_of.items() if split < file.split)

    def _same_content(self) -> Iterator[tuple[_File, _File]]:
        """Images of two splits that show the same."""
        chunks: list[tuple[int, list[_File], npt.NDArray[np.uint8]]] = []  # of one split each
        for split in range(len(self._names)):
            drawn = ((file, _thumbnail(file)) for file in self._files if file.split == split)
            found = [(file, thumbnail) for file, thumbnail in drawn if thumbnail is not None]
            for start in range(0, len(found), _ROWS):
                some = found[start : start + _ROWS]
                chunks.append((split, [file for file, _ in some], np.stack([thumbnail for _, thumbnail in some])))
        for later, files, thumbnails in chunks:
            rows = _normalized(thumbnails)
            for first, others, other_thumbnails in chunks:
                if first < later:
                    similar = rows @ _normalized(other_thumbnails).T
                    for row in np.flatnonzero(similar.max(1) >= _SAME).tolist():
                        yield others[int(similar[row].argmax())], files[row]


def _grouped(files: Iterable[_File], key: Callable[[_File], Hashable]) -> list[list[_File]]:
    """Files by a key; those without one are left out."""
    groups: dict[Hashable, list[_File]] = defaultdict(list)
    for file in files:
        try:
            value = key(file)
        except (OSError, KeyError, ImageError):  # which the check of the split reports
            continue
        groups[value].append(file)
    return [*groups.values()]


def _size(file: _File) -> Hashable:
    content = file.content()
    if isinstance(content, Path):
        return content.stat().st_size
    return len(content) if isinstance(content, bytes) else content.size


def _edge(file: _File) -> Hashable:
    return _hash(file.content(), _EDGE)


def _digest(file: _File) -> Hashable:
    return _hash(file.content(), -1)


def _hash(content: Content, length: int) -> bytes:
    """A digest of the first bytes, or of all."""
    if isinstance(content, Image.Image):
        return hashlib.blake2b(content.tobytes()).digest()
    if isinstance(content, bytes):
        return hashlib.blake2b(content[:length] if length >= 0 else content).digest()
    with content.open("rb") as file:
        return hashlib.blake2b(file.read(length)).digest()


def _thumbnail(file: _File) -> npt.NDArray[np.uint8] | None:
    """Gray values ``(1024,)`` of a small upright image; None for one that cannot be decoded, or shows nothing."""

    def convert(image: Image.Image) -> npt.NDArray[np.uint8]:
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # JPEG is decoded at a fraction of its size
        small = decoding.upright(image).convert("RGB").convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
        return np.asarray(small).ravel()

    try:
        values = decoding.decode(file.content(), file.name, convert)
    except (OSError, KeyError, ImageError):
        return None
    return values if values.std() > _FLAT else None


def _normalized(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Rows of mean 0 and length 1, whose products are correlations."""
    values = thumbnails.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def _shown(shared: dict[str, str]) -> str:
    pairs = [name if name == other else f"{name} is {other}" for name, other in [*shared.items()][:_SHOWN]]
    more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
    return ", ".join(pairs) + more
