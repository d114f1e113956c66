"""Panoptic data for training: from annotation files, PNG files of segments and pictures to loaders of batches."""

from __future__ import annotations

import os
from typing import Any

from focalnet.data.check import decide, find_annotations
from focalnet.data.datasets.collection import Part
from focalnet.data.dense import DenseData
from focalnet.data.panoptic_check import check_panoptic
from focalnet.data.panoptic_samples import PanopticDataset, collate
from focalnet.data.panoptic_transforms import PanopticAugmentation
from focalnet.errors import DataError


class PanopticData(DenseData[PanopticDataset]):
    """Loaders of ``structures.PanopticBatch`` for training, validation and test.

    The annotations are in COCO's panoptic form: a JSON, and a PNG for each image. Without other word, a part's file is
    ``annotations/panoptic_train.json`` or ``panoptic_train2017.json`` (and ``val``, ``test``), and its PNG files are
    in a folder of that name. Labels count from 0: first the things by category id, then the stuff.

    Args:
        root: the folder of the data set.
        train_annotations: the annotation file for training, relative to the root; default: looked for.
        val_annotations: likewise for validation; the test file's name validates on the test images.
        test_annotations: likewise for test; default: looked for, else the validation part.
        images: the folder or uncompressed tar file of the pictures, relative to the root; default: looked for.
        maps: that of the PNG files of segments; default: looked for.
        check: open every PNG before training; false where ``focalnet check-data`` has done it once and for all.
        augmentation: how training images are varied, and the size of the result; the default is Mask2Former's.
        kwargs: those of ``DenseData``.

    Raises:
        ConfigError: an option has an impossible value.
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        root: str | os.PathLike[str],
        train_annotations: str | None = None,
        val_annotations: str | None = None,
        test_annotations: str | None = None,
        images: str | None = None,
        maps: str | None = None,
        check: bool = True,
        augmentation: PanopticAugmentation = PanopticAugmentation(),  # noqa: B008  # frozen
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.annotations: dict[Part, str | None] = {
            "train": train_annotations,
            "val": val_annotations,
            "test": test_annotations,
        }
        self.pictures, self.maps, self.check, self.augmentation = images, maps, check, augmentation

    @property
    def num_things(self) -> int:
        """So many of the first classes are objects; known after ``setup``."""
        assert self.samples, "setup() comes first"
        return next(iter(self.samples.values())).annotated.num_things

    def setup(self, stage: str) -> None:
        super().setup(stage)
        (name, first), *others = ((s.name, s.annotated) for s in self.samples.values())
        classes = first.class_names, first.category_ids, first.num_things
        for other, annotated in others:
            if (annotated.class_names, annotated.category_ids, annotated.num_things) != classes:
                raise DataError(f"{other}: its categories differ from those of {name}; give both the same")

    def _open(self, part: Part) -> PanopticDataset:
        file = find_annotations(self.root, part, self.annotations[part], "panoptic")
        if file is None and part == "test":
            file = find_annotations(self.root, "val", self.annotations["val"], "panoptic")
        if file is None:
            raise DataError(
                f"{self.root}: no annotation file for {part} there (annotations/panoptic_{part}.json); "
                f"data.{part}_annotations names it"
            )
        checked = check_panoptic(self.root, file, images=self.pictures, maps=self.maps, look=self.check)
        decide(checked, self.on_error)
        return PanopticDataset(
            checked.annotated,
            checked.pictures,
            checked.maps,
            self.preprocessing,
            augmentation=self.augmentation if part == "train" else None,
            seed=self.seed,
            on_error=self.on_error,
        )
