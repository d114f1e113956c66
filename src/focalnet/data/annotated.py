"""What data with annotation files in COCO's forms have in common: how a part's file is found, and that parts agree."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from focalnet.data.check import Form, find_annotations
from focalnet.data.datasets.collection import Part
from focalnet.data.dense import D, DenseData
from focalnet.errors import DataError


class AnnotatedData(DenseData[D]):
    """Loaders of batches whose parts have an annotation file each.

    Args:
        root: the folder of the data set.
        train_annotations: the annotation file for training, relative to the root; default: looked for.
        val_annotations: likewise for validation; the test file's name validates on the test images.
        test_annotations: likewise for test; default: looked for, else the validation part.
        images: the folder or uncompressed tar file of the pictures, relative to the root; default: looked for.
        kwargs: those of ``DenseData``.

    Raises:
        ConfigError: an option has an impossible value.
    """

    form: ClassVar[Form]
    usual: ClassVar[str]
    """Where a part's file is looked for first, with ``{part}`` for its name."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        train_annotations: str | None = None,
        val_annotations: str | None = None,
        test_annotations: str | None = None,
        images: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.annotations: dict[Part, str | None] = {
            "train": train_annotations,
            "val": val_annotations,
            "test": test_annotations,
        }
        self.pictures = images

    def setup(self, stage: str) -> None:
        super().setup(stage)
        first, *others = self.samples.values()
        for other in others:
            if self._categories(other) != self._categories(first):
                raise DataError(f"{other.name}: its categories differ from those of {first.name}; give both the same")

    @abstractmethod
    def _categories(self, samples: D) -> object:
        """What must be the same in all parts."""

    def _annotation_file(self, part: Part) -> Path:
        """The annotation file of a part; that of ``val`` where there is none of ``test``."""
        file = find_annotations(self.root, part, self.annotations[part], self.form)
        if file is None and part == "test":
            file = find_annotations(self.root, "val", self.annotations["val"], self.form)
        if file is None:
            raise DataError(
                f"{self.root}: no annotation file for {part} there ({self.usual.format(part=part)}); "
                f"data.{part}_annotations names it"
            )
        return file
