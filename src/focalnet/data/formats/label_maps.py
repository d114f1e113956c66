"""Images in pairs with label maps: where they are, what the numbers mean, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data import images as decoding
from focalnet.data.formats.problems import Problem
from focalnet.data.readers.collection import SYNONYMS, Split, check_exists
from focalnet.data.readers.image_files import FolderOfImages, ImageFiles, TarOfImages
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
        """The label of every number; ``IGNORED`` for numbers that do not stand for a class."""
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
            raise ImageError(f"has numbers from {numbers_HW.min()} to {numbers_HW.max()}, which are not labels")
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
    """How a data set names things: folders of splits, or folders within splits, and what files' names end in."""

    images: str
    masks: str
    image_suffix: str = ""
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
    """The images of a split with their masks.

    Args:
        name: what messages call them.
        images: where the images are.
        masks: where the masks are.
        names: of each image and its mask.
        layout: how they were found.
        problems: images without a mask, and masks without an image.
    """

    name: str
    images: ImageFiles
    masks: ImageFiles
    names: list[tuple[str, str]]
    layout: Layout
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """An image as 8-bit RGB.

        Raises:
            ImageError: it cannot be decoded.
        """
        name = self.names[index][0]
        return decoding.read(_content(self.images, name), self.images.path(name))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without decoding it.

        Raises:
            ImageError: its first bytes cannot be read.
        """
        name = self.names[index][0]
        return decoding.decode(_content(self.images, name), self.images.path(name), decoding.upright_size)

    def labels(self, index: int, rule: LabelRule, num_classes: int | None) -> npt.NDArray[np.int64]:
        """The label of each pixel, ``(H, W)``.

        Raises:
            ImageError: the mask cannot be decoded, is a color image, or has a number of no class.
        """
        return self._decoded(index, lambda mask: rule(_numbers(mask), num_classes))

    def numbers(self, index: int) -> npt.NDArray[np.int64]:
        """The number of each pixel as it is stored, ``(H, W)``.

        Raises:
            ImageError: the mask cannot be decoded, or is a color image.
        """
        return self._decoded(index, _numbers)

    def _decoded(self, index: int, convert: Callable[[Image.Image], npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        name = self.names[index][1]
        return decoding.decode(_content(self.masks, name), self.masks.path(name), convert)


def _content(place: ImageFiles, name: str) -> Path | bytes:
    try:
        return place.content(name)
    except (OSError, KeyError) as error:
        raise ImageError(f"{place.path(name)}: cannot be read: {error}") from error


def _numbers(mask: Image.Image) -> npt.NDArray[np.int64]:
    """The number of each pixel; of a palette its index, whatever its color."""
    if mask.format in ("JPEG", "MPO"):
        raise ImageError("is a JPEG, which is lossy: its numbers are not the labels any more; save masks as PNG")
    if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
        raise ImageError(
            f"is an image in colors (mode {mask.mode}), not a label map, which has one number for each pixel; "
            "docs/segmentation.md shows how to turn colors into numbers"
        )
    return np.asarray(decoding.upright(mask)).astype(np.int64)


def own_layout(images: str | None, masks: str | None, mask_suffix: str) -> tuple[Layout, ...]:
    """The layouts to try, given what a person says of theirs."""
    if images is None and masks is None and not mask_suffix:
        return LAYOUTS
    if (images is None) != (masks is None):
        raise ConfigError("data.images and data.masks go together: the folder of images and that of label maps")
    folders = [(images, masks)] if images and masks else [(p, m) for p, m, *_ in LAYOUTS[:3]]
    return tuple(Layout(p, m, mask_suffix=mask_suffix) for p, m in folders)


def find_pairs(root: Path, split: Split | None, layouts: Sequence[Layout], name: str | None = None) -> Pairs | None:
    """Finds the images of a split and their masks, in folders or in tar files of the root.

    Tried are, for the layout (images, masks): ``images/train`` with ``masks/train``, and ``train/images`` with
    ``train/masks``. An image and its mask have the same name but for suffixes, in subfolders, too.

    Args:
        root: the folder of the data set.
        split: which one; None for a set without splits.
        layouts: names to try.
        name: the split's own, where it is none of the usual.

    Raises:
        DataError: the root is not there, or holds something that cannot be read.
    """
    check_exists(root)
    names = ("",) if split is None else SYNONYMS[split] if name is None else (name,)
    places: list[ImageFiles] = [FolderOfImages(root)] if root.is_dir() else []
    archives = sorted(root.glob("*.tar")) if root.is_dir() else [root]
    places += [TarOfImages(archive) for archive in archives]
    for place in places:
        for layout in layouts:
            for images, masks in _folders(layout, names):
                found = _matched(place.below(images), place.below(masks), layout)
                if found is not None:
                    return found
    return None


def _folders(layout: Layout, splits: Sequence[str]) -> Iterator[tuple[str, str]]:
    for split in splits:
        yield f"{layout.images}/{split}", f"{layout.masks}/{split}"
        if split:
            yield f"{split}/{layout.images}", f"{split}/{layout.masks}"


def _matched(images: ImageFiles, masks: ImageFiles, layout: Layout) -> Pairs | None:
    """Pairs of image and mask by stem; None where images or masks are missing."""
    problems: list[Problem] = []
    of_images = _by_stem(images, layout.image_suffix, problems)
    of_masks = _by_stem(masks, layout.mask_suffix, problems)
    if not of_images or not of_masks:
        return None
    for stem in sorted(of_images.keys() - of_masks.keys()):
        path = images.path(of_images[stem])
        problems.append(Problem(path, "", f"has no mask {masks.path(stem + layout.mask_suffix)}.*"))
    for stem in sorted(of_masks.keys() - of_images.keys()):
        path = masks.path(of_masks[stem])
        problems.append(Problem(path, "", f"has no image {images.path(stem + layout.image_suffix)}.*"))
    names = [(of_images[stem], of_masks[stem]) for stem in sorted(of_images.keys() & of_masks.keys())]
    return Pairs(images.path("").rstrip("/."), images, masks, names, layout, problems)


def _by_stem(place: ImageFiles, suffix: str, problems: list[Problem]) -> dict[str, str]:
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


def check_sizes(pairs: Pairs, index: int, image: tuple[int, int], mask: tuple[int, int]) -> None:
    """Raises ``ImageError`` unless an image and its mask have as many rows and columns."""
    if image != mask:
        place = pairs.masks.path(pairs.names[index][1])
        raise ImageError(
            f"{place}: has {mask[1]} x {mask[0]} pixels, its image {pairs.images.path(pairs.names[index][0])} "
            f"has {image[1]} x {image[0]}"
        )


MOST_LABELS = IGNORED + 1
OBJECT_AS_255 = {IGNORED: 1}  # the label map that makes two classes of 0 and 255
_CHUNK = 64  # masks opened at a time where the first few may tell enough


@dataclass(frozen=True)
class CheckedPairs:
    """A split of a data set whose masks have been read.

    Args:
        pairs: those that can be used.
        problems: all that was found, with those of ``pairs``.
        pixels: number of pixels by label, 256 numbers; the last is of those that are no class.
        ignored_alone: pixels of no class are in masks without any class but 0, and in no others.
    """

    pairs: Pairs
    problems: list[Problem]
    pixels: npt.NDArray[np.int64]
    ignored_alone: bool = False

    @property
    def labels(self) -> list[int]:
        """Those of at least one pixel."""
        return [int(label) for label in np.flatnonzero(self.pixels[:IGNORED])]


def check_masks(pairs: Pairs, rule: LabelRule, num_classes: int | None, *, decode: bool = False) -> CheckedPairs:
    """Decodes every mask; compares its size with that of its image, and its numbers with the classes.

    Args:
        pairs: images and masks.
        rule: what the numbers in the masks mean.
        num_classes: None takes every number that can be a class.
        decode: decode the images, too, and not their first bytes only.
    """

    def count(index: int) -> npt.NDArray[np.int64] | Problem:
        try:
            labels_HW = pairs.labels(index, rule, num_classes)
            image = pairs.image(index) if decode else None
            size = (image.height, image.width) if image else pairs.size(index)
            check_sizes(pairs, index, size, (labels_HW.shape[0], labels_HW.shape[1]))
        except ImageError as error:
            path, _, what = str(error).partition(": ")
            return Problem(path, "", what)
        return np.bincount(labels_HW.ravel(), minlength=MOST_LABELS)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without holding the interpreter
        counts = list(pool.map(count, range(len(pairs))))
    whole = [name for name, one in zip(pairs.names, counts, strict=True) if not isinstance(one, Problem)]
    read = [one for one in counts if not isinstance(one, Problem)]
    pixels = sum(read, np.zeros(MOST_LABELS, dtype=np.int64))
    problems = pairs.problems + [one for one in counts if isinstance(one, Problem)]
    beside_classes = [bool(one[1:IGNORED].any()) for one in read if one[IGNORED]]
    ignored_alone = bool(beside_classes) and not any(beside_classes)
    return CheckedPairs(replace(pairs, names=whole), problems, pixels, ignored_alone)


def unchecked(pairs: Pairs) -> CheckedPairs:
    """For sets too large to be opened before each run: only what their names say is checked."""
    return CheckedPairs(pairs, pairs.problems, np.zeros(MOST_LABELS, dtype=np.int64))


def hold_0_and_255(splits: Sequence[Pairs], most: int | None = None) -> bool:
    """Whether the masks of all splits together hold 0 and 255 and no other number, as those of one object class do.

    Args:
        splits: of one data set; one of them may hold only some of its numbers.
        most: open no more masks of a split than so many, evenly spread; default: all, unless another number ends it.
    """

    def count(one: tuple[Pairs, int]) -> tuple[bool, bool, bool]:
        """Whether there is a 0, a 255, and anything else."""
        try:
            numbers_HW = one[0].numbers(one[1])
        except ImageError:  # told by ``check_masks``
            return False, False, False
        zero, white = numbers_HW == 0, numbers_HW == IGNORED
        return bool(zero.any()), bool(white.any()), not bool((zero | white).all())

    masks = [(pairs, index) for pairs in splits for index in range(0, len(pairs), _step(len(pairs), most))]
    zeros = whites = False
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(masks), _CHUNK):
            found = list(pool.map(count, masks[start : start + _CHUNK]))
            if any(others for *_, others in found):
                return False
            zeros |= any(zero for zero, *_ in found)
            whites |= any(white for _, white, _ in found)
    return zeros and whites


def _step(count: int, most: int | None) -> int:
    return 1 if most is None else max(-(-count // most), 1)


def too_few_classes(checked: CheckedPairs, rule: LabelRule, names: Sequence[str]) -> str | None:
    """Why nothing can be learned from a split: its labelled pixels are of no class, or all of the same."""
    labels, first = checked.labels, int(rule.reduce_zero_label)
    if len(labels) > 1 or not len(checked.pairs):  # of no masks at all, something else is said
        return None
    if not labels:
        found, other = "not one pixel of its masks has a class", first
    else:
        name = names[labels[0]] if labels[0] < len(names) else f"class {labels[0]}"
        found = f'every labelled pixel of its masks is of one class, "{name}", and a segmenter needs two or more'
        other = first + int(labels[0] == 0)
    if not checked.pixels[IGNORED]:
        return found
    share = 100 * checked.pixels[IGNORED] / checked.pixels.sum()
    return (
        f"{found}; {share:.1f} % of the pixels are ignored, which is {rule.ignore_index}{' and 0' * first}: "
        f"data.label_map {{{rule.ignore_index}: {other}}} makes a class of {rule.ignore_index}"
        + ", data.reduce_zero_label false one of 0"
        * first
    )


def remarks(checked: CheckedPairs, rule: LabelRule, *, named: bool, by_default: bool) -> Iterator[str]:
    """What may be meant otherwise than it is read.

    Args:
        checked: a split.
        rule: what the numbers in its masks mean.
        named: whether somebody has listed the classes.
        by_default: whether nobody has said what is ignored.
    """
    if by_default and rule == LabelRule() and checked.ignored_alone and any(checked.labels):
        yield (
            f"{checked.pairs.name}: 255 is ignored, but no mask with 255 has another class than 0; if it is an object, "
            "data.label_map {255: 1} reads it as class 1"
        )
    labels = checked.labels
    if labels and not named and 2 * len(labels) < labels[-1] + 1:
        first = int(rule.reduce_zero_label)
        pairs = [f"{label + first}: {i + first}" for i, label in enumerate(labels) if i != label]
        way_out = f"data.label_map {{{', '.join(pairs)}}}" if not rule.label_map else "data.label_map"
        ignored = f" ({rule.ignore_index} is ignored)" if checked.pixels[IGNORED] else ""
        yield (
            f"{checked.pairs.name}: its masks hold {len(labels)} of {labels[-1] + 1} classes, numbered up to "
            f"{labels[-1] + first}{ignored}; {way_out} numbers them without gaps"
        )
