"""scikit-learn's handwritten digits: real data that comes with the install."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data.readers.source import Source
from focalnet.errors import require

SPLITS = ("train", "test")


class Digits(Source):
    """1,797 digits of 8 x 8 pixels, gray values 0...16 scaled to 0...255, in two fixed splits.

    ``"test"``: 20 % of each digit, 360 in all, drawn once by scikit-learn's ``train_test_split(test_size=0.2,
    random_state=0, stratify=labels)`` over the indices; ``"train"``: the other 1,437. Both in index order.
    """

    def __init__(self, split: str) -> None:
        digits = require("sklearn.datasets", "train").load_digits()
        select = require("sklearn.model_selection", "train").train_test_split
        splits = select(np.arange(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target)
        self._indices: npt.NDArray[np.int64] = np.sort(splits[SPLITS.index(split)])
        self._grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        super().__init__(f"digits ({split})", [str(digit) for digit in range(10)], digits.target[self._indices])

    def content(self, index: int) -> Image.Image:
        return Image.fromarray(self._grey[self._indices[index]])

    def path(self, index: int) -> str:
        return f"digits/{self._indices[index]}"
