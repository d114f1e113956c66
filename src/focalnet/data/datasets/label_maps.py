"""Pictures in pairs with label maps: where they lie, what the numbers mean, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data import images
from focalnet.data.datasets.coco import Problem
from focalnet.data.datasets.collection import SYNONYMS, Part, check_exists
from focalnet.data.datasets.pictures import FolderOfPictures, Pictures, TarOfPictures
from focalnet.errors import ConfigError, ImageError
from focalnet.samples import IGNORED

_NUMBERS = 1 << 16  # a label map of 16 bits has so many
_NO_CLASS = _NUMBERS  # what no data set can have as a label


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """What the numbers in a label map mean.

    Args:
        ignore_index: this number, after ``label_map``, is no class.
        reduce_zero_label: 0 is no class either, and the classes count from 1, as in ADE20K.
        label_map: other numbers for some, before anything else.
    """

    ignore_index: int = IGNORED
    reduce_zero_label: bool = False
    label_map: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (self.ignore_index, *self.label_map, *self.label_map.values())
        if not all(0 <= number < _NUMBERS for number in numbers):
            raise ConfigError("data.ignore_index and the numbers of data.label_map must be between 0 and 65535")

    @cached_property
    def meaning(self) -> npt.NDArray[np.int64]:
        """The label of every number; ``IGNORED`` for those that are no class."""
        labels = np.arange(_NUMBERS)
        for number, other in self.label_map.items():
            labels[number] = other
        ignored = labels == self.ignore_index
        if self.reduce_zero_label:
            ignored |= labels == 0
            labels -= 1
        labels[labels == IGNORED] = _NO_CLASS  # so that class 255 is refused and not ignored
        labels[ignored] = IGNORED
        return labels

    def __call__(self, numbers_HW: npt.NDArray[np.int64], num_classes: int | None) -> npt.NDArray[np.int64]:
        """A map of numbers as a map of labels.

        Args:
            numbers_HW: as stored.
            num_classes: labels from it on are refused; None takes them all.

        Raises:
            ImageError: a number is that of no class.
        """
        last = (IGNORED if num_classes is None else num_classes) - 1
        if numbers_HW.min() < 0 or numbers_HW.max() >= _NUMBERS:
            raise ImageError(f"has numbers from {numbers_HW.min()} to {numbers_HW.max()}, which are no labels")
        labels_HW = self.meaning[numbers_HW]
        wrong = (labels_HW > last) & (labels_HW != IGNORED)
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            first = int(self.reduce_zero_label)
            raise ImageError(
                f"has the number {numbers_HW[row, column]} at row {row}, column {column}: classes are {first} to "
                f"{first + last}, ignored is {self.ignore_index}{' and 0' * first}; change that by data.class_names, "
                "data.ignore_index or data.label_map"
            )
        return labels_HW


class Layout(NamedTuple):
    """How a data set names things: folders of parts, or folders within parts, and what files' names end in."""

    pictures: str
    masks: str
    picture_suffix: str = ""
    mask_suffix: str = ""
    class_names: tuple[str, ...] = ()
    label_map: Mapping[int, int] = {}


_CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_FROM_IDS = {i: _CITYSCAPES_IDS.index(i) if i in _CITYSCAPES_IDS else IGNORED for i in range(34)}

#: Tried one after the other. The first is ADE20K's.
LAYOUTS = (
    Layout("images", "annotations"),
    Layout("images", "masks"),
    Layout("images", "labels"),
    Layout("leftImg8bit", "gtFine", "_leftImg8bit", "_gtFine_labelTrainIds", _CITYSCAPES),
    Layout("leftImg8bit", "gtFine", "_leftImg8bit", "_gtFine_labelIds", _CITYSCAPES, _FROM_IDS),
)


@dataclass(frozen=True)
class Pairs:
    """The pictures of a part with their masks.

    Args:
        name: what messages call them.
        pictures: where the pictures are.
        masks: where the masks are.
        names: of each picture and its mask.
        layout: how they were found.
        problems: pictures without a mask, and masks without a picture.
    """

    name: str
    pictures: Pictures
    masks: Pictures
    names: list[tuple[str, str]]
    layout: Layout
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Image.Image:
        """A picture as 8-bit RGB.

        Raises:
            ImageError: it cannot be decoded.
        """
        name = self.names[index][0]
        return images.read(_content(self.pictures, name), self.pictures.path(name))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture, without decoding it.

        Raises:
            ImageError: its first bytes cannot be read.
        """
        name = self.names[index][0]
        return images.decode(_content(self.pictures, name), self.pictures.path(name), images.upright_size)

    def labels(self, index: int, rule: LabelRule, num_classes: int | None) -> npt.NDArray[np.int64]:
        """The label of each pixel, ``(H, W)``.

        Raises:
            ImageError: the mask cannot be decoded, is a colour picture, or has a number of no class.
        """
        return self._decoded(index, lambda mask: rule(_numbers(mask), num_classes))

    def numbers(self, index: int) -> npt.NDArray[np.int64]:
        """The number of each pixel as it is stored, ``(H, W)``.

        Raises:
            ImageError: the mask cannot be decoded, or is a colour picture.
        """
        return self._decoded(index, _numbers)

    def _decoded(self, index: int, convert: Callable[[Image.Image], npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        name = self.names[index][1]
        return images.decode(_content(self.masks, name), self.masks.path(name), convert)


def _content(place: Pictures, name: str) -> Path | bytes:
    try:
        return place.content(name)
    except (OSError, KeyError) as error:
        raise ImageError(f"{place.path(name)}: cannot be read: {error}") from error


def _numbers(mask: Image.Image) -> npt.NDArray[np.int64]:
    """The number of each pixel; of a palette its index, whatever its colour."""
    if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
        raise ImageError(
            f"is a picture in colours (mode {mask.mode}), not a label map, which has one number for each pixel; "
            "docs/segmentation.md shows how to turn colours into numbers"
        )
    return np.asarray(images.upright(mask)).astype(np.int64)


def own_layout(pictures: str | None, masks: str | None, mask_suffix: str) -> tuple[Layout, ...]:
    """The layouts to try, given what a person says of theirs."""
    if pictures is None and masks is None and not mask_suffix:
        return LAYOUTS
    if (pictures is None) != (masks is None):
        raise ConfigError("data.images and data.masks go together: the folder of pictures and that of label maps")
    folders = [(pictures, masks)] if pictures and masks else [(p, m) for p, m, *_ in LAYOUTS[:3]]
    return tuple(Layout(p, m, mask_suffix=mask_suffix) for p, m in folders)


def find_pairs(root: Path, part: Part | None, layouts: Sequence[Layout], split: str | None = None) -> Pairs | None:
    """Finds the pictures of a part and their masks, in folders or in tar files of the root.

    Tried are, for the layout (images, masks): ``images/train`` with ``masks/train``, and ``train/images`` with
    ``train/masks``. A picture and its mask have the same name but for suffixes, in subfolders, too.

    Args:
        root: the folder of the data set.
        part: which part; None for a set without parts.
        layouts: names to try.
        split: the part's own name, where it is none of the usual.

    Raises:
        DataError: the root is not there, or holds something that cannot be read.
    """
    check_exists(root)
    splits = ("",) if part is None else SYNONYMS[part] if split is None else (split,)
    places: list[Pictures] = [FolderOfPictures(root)] if root.is_dir() else []
    archives = sorted(root.glob("*.tar")) if root.is_dir() else [root]
    places += [TarOfPictures(archive) for archive in archives]
    for place in places:
        for layout in layouts:
            for pictures, masks in _folders(layout, splits):
                found = _matched(place.below(pictures), place.below(masks), layout)
                if found is not None:
                    return found
    return None


def _folders(layout: Layout, splits: Sequence[str]) -> Iterator[tuple[str, str]]:
    for split in splits:
        yield f"{layout.pictures}/{split}", f"{layout.masks}/{split}"
        if split:
            yield f"{split}/{layout.pictures}", f"{split}/{layout.masks}"


def _matched(pictures: Pictures, masks: Pictures, layout: Layout) -> Pairs | None:
    """Pairs by stem; None where there are no pictures or no masks."""
    problems: list[Problem] = []
    of_pictures = _by_stem(pictures, layout.picture_suffix, problems)
    of_masks = _by_stem(masks, layout.mask_suffix, problems)
    if not of_pictures or not of_masks:
        return None
    for stem in sorted(of_pictures.keys() - of_masks.keys()):
        path = pictures.path(of_pictures[stem])
        problems.append(Problem(path, "", f"has no mask {masks.path(stem + layout.mask_suffix)}.*"))
    for stem in sorted(of_masks.keys() - of_pictures.keys()):
        path = masks.path(of_masks[stem])
        problems.append(Problem(path, "", f"has no picture {pictures.path(stem + layout.picture_suffix)}.*"))
    names = [(of_pictures[stem], of_masks[stem]) for stem in sorted(of_pictures.keys() & of_masks.keys())]
    return Pairs(pictures.path("").rstrip("/."), pictures, masks, names, layout, problems)


def _by_stem(place: Pictures, suffix: str, problems: list[Problem]) -> dict[str, str]:
    """Name by what is left of it without type and suffix; those without the suffix are something else."""
    found: dict[str, str] = {}
    for name in place.names():
        stem = str(PurePosixPath(name).with_suffix(""))
        if not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix)
        if stem in found:
            problems.append(Problem(place.path(name), "", f"has the stem of {found[stem]}, too"))
            continue
        found[stem] = name
    return found
