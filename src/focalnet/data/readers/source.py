"""What every data set of labeled images offers, whatever it is stored in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data import images
from focalnet.errors import DataError, ImageError

#: ``on_error="skip"`` is for a few broken images; as many as this in a row mean that something else is wrong.
MAX_BROKEN_IN_A_ROW = 100


class TooFewImages(DataError):
    """Nothing can be held out: a class has one image only."""


class Source(ABC):
    """Labeled images, found but not decoded.

    Args:
        name: what messages call it: a path, with the split.
        class_names: by label.
        labels: by index, ``(N,)``.

    Raises:
        DataError: there are no images, or fewer than two classes.
    """

    def __init__(self, name: str, class_names: Sequence[str], labels: npt.ArrayLike) -> None:
        self.name, self.class_names = name, tuple(class_names)
        self.labels = np.asarray(labels, dtype=np.int64)
        if not len(self.labels):
            raise DataError(f"{name}: no images there (looked for {' '.join(images.SUFFIXES)})")
        if len(self.class_names) < 2:
            raise DataError(
                f'{name}: only one class ("{self.class_names[0]}"), a classifier needs two or more; '
                "each class is a folder of its images"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def number_as(self, names: Sequence[str]) -> None:
        """Numbers the classes in the order of these names, unless they are not exactly its own."""
        if len(set(names)) != len(names) or sorted(names) != sorted(self.class_names):
            return
        new_label = np.array([names.index(name) for name in self.class_names])
        self.class_names, self.labels = tuple(names), new_label[self.labels]

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB.

        Raises:
            ImageError: it cannot be decoded; the message names it.
        """
        try:
            content = self.content(index)
        except OSError as error:
            raise ImageError(f"{self.path(index)}: cannot be read: {error}") from error
        return images.read(content, self.path(index))

    @abstractmethod
    def content(self, index: int) -> Path | bytes | Image.Image:
        """The image, or where it is."""

    @abstractmethod
    def path(self, index: int) -> str:
        """A name that finds the image again: a path, or the archive's path and the path inside."""


class Subset(Source):
    """Some of a source's images, with all of its classes."""

    def __init__(self, source: Source, indices: npt.NDArray[np.int64], name: str) -> None:
        super().__init__(f"{source.name} ({name})", source.class_names, source.labels[indices])
        self._source, self._indices = source, indices.tolist()

    def content(self, index: int) -> Path | bytes | Image.Image:
        return self._source.content(self._indices[index])

    def path(self, index: int) -> str:
        return self._source.path(self._indices[index])


class DecodedImages:
    """Images decoded once, for data sets that fit into memory: one buffer, which forked workers share without a copy.

    Args:
        count: number of images.
        decode: an image by index; an ``ImageError`` that it raises is raised again when the image is read.
    """

    def __init__(self, count: int, decode: Callable[[int], Image.Image]) -> None:
        self._errors: dict[int, str] = {}
        images = [self._pixels_of(index, decode) for index in range(count)]
        self._sizes = np.array([image.shape[:2] for image in images])
        self._ends = np.cumsum([image.size for image in images])
        self._pixels = np.concatenate([image.ravel() for image in images])

    def read(self, index: int) -> Image.Image:
        """An image.

        Raises:
            ImageError: it could not be decoded.
        """
        if index in self._errors:
            raise ImageError(self._errors[index])
        height, width = self._sizes[index]
        end = self._ends[index]
        return Image.fromarray(self._pixels[end - height * width * 3 : end].reshape(height, width, 3))

    def _pixels_of(self, index: int, decode: Callable[[int], Image.Image]) -> npt.NDArray[np.uint8]:
        try:
            return np.asarray(decode(index))
        except ImageError as error:
            self._errors[index] = str(error)
            return np.zeros((0, 0, 3), np.uint8)


class InMemory(Source):
    """A source decoded once."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.name, source.class_names, source.labels)
        self._source = source
        self._decoded = DecodedImages(len(source), source.read)

    def read(self, index: int) -> Image.Image:
        return self._decoded.read(index)

    def content(self, index: int) -> Image.Image:
        return self.read(index)

    def path(self, index: int) -> str:
        return self._source.path(index)


class _Named(Protocol):
    """A split with its classes."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...


def other_classes(first: _Named, other: _Named) -> str | None:
    """How the classes of a split differ from those of another one, if they do."""
    if other.class_names == first.class_names:
        return None
    different = sorted(set(first.class_names) ^ set(other.class_names)) or other.class_names
    return (
        f'its classes differ from those of {first.name}, e.g. "{different[0]}"; '
        "give every split the same class folders, or list all classes in a data.class_map"
    )


def hold_out(source: Source, fraction: float) -> tuple[Source, Source]:
    """Splits off a fraction of every class, leaving and taking at least one: (the rest, the held out).

    Which images is a function of the source alone, not of any seed, so that runs can be compared.

    Raises:
        TooFewImages: a class has one image only.
    """
    order = np.random.default_rng(0).permutation(len(source))
    held = []
    for label, class_name in enumerate(source.class_names):
        members = order[source.labels[order] == label]
        if len(members) == 1:
            raise TooFewImages(f'{source.name}: class "{class_name}" has 1 image; holding out some needs 2 or more')
        held.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    mask = np.zeros(len(source), dtype=bool)
    mask[np.concatenate(held)] = True
    return Subset(source, np.flatnonzero(~mask), "training part"), Subset(source, np.flatnonzero(mask), "held out")
