"""Are the masks of a data set fit to train on? What is wrong with them, before training starts, file by file."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from focalnet.data.datasets.coco import Problem
from focalnet.data.datasets.label_maps import LabelRule, Pairs
from focalnet.data.semantic_samples import check_sizes
from focalnet.errors import ImageError
from focalnet.structures import IGNORED

MOST_LABELS = IGNORED + 1


@dataclass(frozen=True)
class CheckedPairs:
    """A part of a data set whose masks have been read.

    Args:
        pairs: those that can be used.
        problems: all that was found, with those of ``pairs``.
        pixels: number of pixels by label, 256 numbers; the last is of those that are no class.
    """

    pairs: Pairs
    problems: list[Problem]
    pixels: npt.NDArray[np.int64]


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
    pixels = sum((one for one in counts if not isinstance(one, Problem)), np.zeros(MOST_LABELS, dtype=np.int64))
    problems = pairs.problems + [one for one in counts if isinstance(one, Problem)]
    return CheckedPairs(replace(pairs, names=whole), problems, pixels)


def unchecked(pairs: Pairs) -> CheckedPairs:
    """For sets too large to be opened before each run: only what their names say is checked."""
    return CheckedPairs(pairs, pairs.problems, np.zeros(MOST_LABELS, dtype=np.int64))
