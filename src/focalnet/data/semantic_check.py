"""Are the masks of a data set fit to train on? What is wrong with them, before training starts, file by file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from focalnet.data.datasets.coco import Problem
from focalnet.data.datasets.label_maps import LabelRule, Pairs
from focalnet.data.semantic_samples import check_sizes
from focalnet.errors import ImageError
from focalnet.samples import IGNORED

MOST_LABELS = IGNORED + 1
OBJECT_AS_255 = {IGNORED: 1}  # the label map that makes two classes of 0 and 255
_CHUNK = 64  # masks opened at a time where the first few may tell enough


@dataclass(frozen=True)
class CheckedPairs:
    """A part of a data set whose masks have been read.

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
    """Decodes every mask; compares its size with that of its picture, and its numbers with the classes.

    Args:
        pairs: pictures and masks.
        rule: what the numbers in the masks mean.
        num_classes: None takes every number that can be a class.
        decode: decode the pictures, too, and not their first bytes only.
    """

    def count(index: int) -> npt.NDArray[np.int64] | Problem:
        try:
            labels_HW = pairs.labels(index, rule, num_classes)
            picture = pairs.picture(index) if decode else None
            size = (picture.height, picture.width) if picture else pairs.size(index)
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


def hold_0_and_255(parts: Sequence[Pairs], most: int | None = None) -> bool:
    """Whether the masks of all parts together hold 0 and 255 and no other number, as those of one object class do.

    Args:
        parts: of one data set; one of them may hold only some of its numbers.
        most: open no more masks of a part than so many, evenly spread; default: all, unless another number ends it.
    """

    def count(one: tuple[Pairs, int]) -> tuple[bool, bool, bool]:
        """Whether there is a 0, a 255, and anything else."""
        try:
            numbers_HW = one[0].numbers(one[1])
        except ImageError:  # told by ``check_masks``
            return False, False, False
        zero, white = numbers_HW == 0, numbers_HW == IGNORED
        return bool(zero.any()), bool(white.any()), not bool((zero | white).all())

    masks = [(pairs, index) for pairs in parts for index in range(0, len(pairs), _step(len(pairs), most))]
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
    """Why nothing can be learned from a part: its labelled pixels are of no class, or all of the same."""
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
        checked: a part.
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
