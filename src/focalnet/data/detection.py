"""Detection data for training: from annotation files and pictures to loaders of batches."""

from __future__ import annotations

import os
from typing import Any

from focalnet.data.check import check_part, decide, find_annotations
from focalnet.data.datasets.collection import Part
from focalnet.data.dense import DenseData
from focalnet.data.detection_samples import DetectionDataset, collate
from focalnet.data.detection_transforms import DetectionAugmentation
from focalnet.errors import DataError


class DetectionData(DenseData[DetectionDataset]):
    """Loaders of ``structures.DetectionBatch`` for training, validation and test.

    The annotations are in COCO's JSON form; ``focalnet.data.voc`` makes it of Pascal VOC's XML. Without other word,
    a part's file is ``annotations/instances_train.json`` or ``instances_train2017.json``,
    ``train/_annotations.coco.json`` or ``train.json`` (and ``val``, ``test``). Everything is checked before training.

    Args:
        root: the folder of the data set.
        train_annotations: the annotation file for training, relative to the root; default: looked for.
        val_annotations: likewise for validation; the test file's name validates on the test images.
        test_annotations: likewise for test; default: looked for, else the validation part.
        images: the folder or uncompressed tar file of the pictures, relative to the root; default: looked for.
        masks: read segmentations, which every object must then have.
        with_empty: train on pictures without objects, too; the official training leaves them out.
        augmentation: how training images are varied; the default is the official one. ``max_size`` holds for it, too.
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
        masks: bool = True,
        with_empty: bool = True,
        augmentation: DetectionAugmentation = DetectionAugmentation(),  # noqa: B008  # frozen
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.annotations: dict[Part, str | None] = {
            "train": train_annotations,
            "val": val_annotations,
            "test": test_annotations,
        }
        self.pictures, self.masks, self.with_empty, self.augmentation = images, masks, with_empty, augmentation

    def setup(self, stage: str) -> None:
        super().setup(stage)
        first, *others = self.samples.values()
        for other in others:
            if (other.coco.class_names, other.coco.category_ids) != (first.coco.class_names, first.coco.category_ids):
                raise DataError(f"{other.name}: its categories differ from those of {first.name}; give both the same")

    def _open(self, part: Part) -> DetectionDataset:
        file = find_annotations(self.root, part, self.annotations[part])
        if file is None and part == "test":
            file = find_annotations(self.root, "val", self.annotations["val"])
        if file is None:
            raise DataError(
                f"{self.root}: no annotation file for {part} there (annotations/instances_{part}.json or "
                f"{part}/_annotations.coco.json); data.{part}_annotations names it"
            )
        training = part == "train"
        checked = check_part(self.root, file, masks=self.masks, images=self.pictures)
        decide(checked, self.on_error)
        return DetectionDataset(
            checked.coco,
            checked.pictures,
            self.preprocessing,
            augmentation=self.augmentation if training else None,
            masks=self.masks and training,
            with_empty=self.with_empty or not training,
            seed=self.seed,
            on_error=self.on_error,
        )
