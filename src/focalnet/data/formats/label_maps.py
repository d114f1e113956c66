"""What the numbers in label maps mean, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from focalnet.data.formats.pairs import Pairs, check_sizes
from focalnet.data.formats.problems import Problem
from focalnet.errors import ConfigError, ImageError
from focalnet.samples import IGNORED

_NUMBERS = 1 << 16  # a label map of 16 bits has so many
_NO_CLASS = _NUMBERS  # what no data set can have as a label


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """What the numbers in a label map mean.

    Args:
        ignore_index: this label, after ``label_map``, is not a class.
        reduce_zero_label: 0 is not a class either, and the classes count from 1, as in ADE20K.
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


MOST_LABELS = IGNORED + 1
MOST_UNNAMED = 100  # more classes than these need a class list
_CHUNK = 64  # masks opened at a time where the first few may tell enough
_SHOWN = 12  # numbers that a message shows


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
    turned: list[int] = []  # indices of images whose size does not tell whether the mask is turned likewise

    def count(index: int) -> npt.NDArray[np.int64] | Problem:
        try:
            labels_HW = pairs.labels(index, rule, num_classes)
            height, width, orientation = pairs.header(index)
            if decode:
                pairs.image(index)
            check_sizes(pairs, index, (height, width), (labels_HW.shape[0], labels_HW.shape[1]))
            if 1 < orientation < 5 or (orientation != 1 and height == width):
                turned.append(index)
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
    told = pairs.remarks
    if turned:
        told += (
            f"{pairs.name}: {len(turned)} images are turned by their Exif orientation, e.g. "
            f"{pairs.names[min(turned)][0]}, which the sizes of their masks cannot confirm: masks should be of the "
            "upright images; if not, remove the orientation (exiftool -Orientation= FILES)",
        )
    return CheckedPairs(replace(pairs, names=whole, remarks=told), problems, pixels, ignored_alone)


def unchecked(pairs: Pairs) -> CheckedPairs:
    """For sets too large to be opened before each run: only what their names say is checked."""
    return CheckedPairs(pairs, pairs.problems, np.zeros(MOST_LABELS, dtype=np.int64))


def only_object(splits: Sequence[Pairs], most: int | None = None) -> int | None:
    """The number of the one object class: the masks of all splits together hold 0, it, and nothing else.

    Args:
        splits: of one data set; one of them may hold only some of its numbers.
        most: open no more masks of a split than so many, evenly spread; default: all, unless a third number ends it.
    """

    def found(one: tuple[Pairs, int]) -> set[int]:
        try:
            numbers_HW = one[0].numbers(one[1])
        except ImageError:  # told by ``check_masks``
            return set()
        return _first_numbers(numbers_HW)

    masks = [(pairs, index) for pairs in splits for index in range(0, len(pairs), _step(len(pairs), most))]
    numbers: set[int] = set()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(masks), _CHUNK):
            numbers.update(*pool.map(found, masks[start : start + _CHUNK]))
            if len(numbers - {0}) > 1:
                return None
    return max(numbers) if len(numbers) == 2 and min(numbers) == 0 else None


def _first_numbers(numbers_HW: npt.NDArray[np.int64]) -> set[int]:
    """All numbers where there are at most two beside 0, else three of them; without sorting."""
    numbers = {0} if (numbers_HW == 0).any() else set()
    left = numbers_HW[numbers_HW != 0]
    while left.size and len(numbers - {0}) < 2:
        numbers.add(int(left[0]))
        left = left[left != left[0]]
    return numbers


def _step(count: int, most: int | None) -> int:
    return 1 if most is None else max(-(-count // most), 1)


def too_few_classes(checked: CheckedPairs, rule: LabelRule, names: Sequence[str]) -> str | None:
    """Why nothing can be learned from a split: its labeled pixels are of no class, or all of the same."""
    labels, first = checked.labels, int(rule.reduce_zero_label)
    if len(labels) > 1 or not len(checked.pairs):  # of no masks at all, something else is said
        return None
    if not labels:
        found, other = "no pixel of its masks has a class", first
    else:
        name = names[labels[0]] if labels[0] < len(names) else f"class {labels[0]}"
        found = f'every labeled pixel of its masks is of one class, "{name}", and a segmenter needs two or more'
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


def mostly_ignored(checked: CheckedPairs, rule: LabelRule) -> str | None:
    """The problem of a split most of whose pixels are ignored, although the options do not ask for it."""
    share = checked.pixels[IGNORED] / max(checked.pixels.sum(), 1)
    if share <= 0.5 or not checked.labels:
        return None
    number = rule.ignore_index
    free = next(n for n in range(IGNORED) if n not in checked.labels)
    return (
        f"{share:.1%} of its pixels are {number}, which is ignored: data.ignore_index {number} says that it is meant, "
        f"data.label_map {{{number}: {free}}} makes {number} a class"
    )


def implausible(checked: CheckedPairs, rule: LabelRule) -> str | None:
    """The reason why the values in the masks are probably not labels, if no class list is given."""
    labels, first = checked.labels, int(rule.reduce_zero_label)
    if len(labels) > MOST_UNNAMED:
        return (
            f"its masks hold {len(labels)} numbers up to {labels[-1] + first}, more than {MOST_UNNAMED} classes: list "
            "the classes in classes.txt or data.class_names; if there are fewer, the masks have been blurred by "
            "resizing or by a lossy format, or number objects and not classes"
        )
    if not labels or 2 * len(labels) >= labels[-1] + 1:
        return None
    numbers = [label + first for label in labels]
    mapping = {number: i + first for i, number in enumerate(numbers) if number != i + first}
    if checked.pixels[IGNORED] and not rule.label_map:
        numbers.append(rule.ignore_index)
    shown = ", ".join(map(str, numbers[:_SHOWN])) + ", ..." * (len(numbers) > _SHOWN)
    ignored = f" ({rule.ignore_index} is ignored)" if checked.pixels[IGNORED] else ""
    way_out = f"data.label_map {mapping} numbers them" if not rule.label_map else "let data.label_map number them"
    return (
        f"its masks hold {len(labels)} numbers up to {labels[-1] + first}{ignored}: {shown}; {way_out} without gaps, "
        "data.class_names lists more classes; if resizing or a lossy format has blurred the masks, create them again"
    )


def remarks(checked: CheckedPairs, rule: LabelRule, *, named: bool, by_default: bool) -> Iterator[str]:
    """What may be meant otherwise than it is read.

    Args:
        checked: a split.
        rule: what the numbers in its masks mean.
        named: whether somebody has listed the classes.
        by_default: whether ``ignore_index`` is the default.
    """
    yield from checked.pairs.remarks
    if by_default and rule == LabelRule() and checked.ignored_alone and any(checked.labels):
        yield (
            f"{checked.pairs.name}: 255 is ignored, but no mask with 255 has another class than 0; if it is an object, "
            "data.label_map {255: 1} reads it as class 1"
        )
    labels, first = checked.labels, int(rule.reduce_zero_label)
    absent = sorted(set(range(labels[-1] + 1)) - set(labels)) if labels and not named else []
    if absent:
        some = ", ".join(str(label + first) for label in absent[:_SHOWN]) + ", ..." * (len(absent) > _SHOWN)
        from_one = "; data.reduce_zero_label true counts them from 1" if absent == [0] and not first else ""
        yield f"{checked.pairs.name}: no pixel of its masks is {some}, which count as classes{from_one}"
