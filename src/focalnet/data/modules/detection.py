"""Detection data for training: from annotation files and images to loaders of batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from focalnet.data.augment import DetectionAugmentation
from focalnet.data.dataset import DetectionDataset, has_objects
from focalnet.data.formats.coco import check_coco
from focalnet.data.formats.problems import decide
from focalnet.data.modules.base import AnnotatedData
from focalnet.data.readers.collection import Split
from focalnet.errors import DataError


class DetectionData(AnnotatedData[DetectionDataset]):
    """Loaders of ``samples.Batch`` for training, validation and test.

    The annotations are in COCO's JSON format; ``focalnet convert-data`` makes it of Pascal VOC's XML. By default,
    a split's file is ``annotations/instances_train.json`` or ``instances_train2017.json``,
    ``train/_annotations.coco.json`` or ``train.json`` (and ``val``, ``test``). Everything is checked before training.
    In training, upright images share a batch, and so do the others.

    Args:
        root: the folder of the data set.
        masks: read segmentations, which every object must then have.
        with_empty: train on images without objects, too; the official training leaves them out.
        augmentation: how training images are varied; the default is the official one. ``max_size`` holds for it, too.
        kwargs: those of ``AnnotatedData`` and ``DensePredictionData``.

    Raises:
        ConfigError: an option has an impossible value.
    """

    format = "instances"
    usual = "annotations/instances_{split}.json or {split}/_annotations.coco.json"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        masks: bool = True,
        with_empty: bool = True,
        augmentation: DetectionAugmentation = DetectionAugmentation(),  # noqa: B008  # frozen
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.masks, self.with_empty, self.augmentation = masks, with_empty, augmentation

    def _categories(self, samples: DetectionDataset) -> object:
        return samples.coco.class_names, samples.coco.category_ids

    def _groups(self, samples: DetectionDataset) -> Sequence[int]:
        return [image.width < image.height for image in samples.images]

    def _open(self, split: Split) -> DetectionDataset:
        training = split == "train"
        checked = check_coco(self.root, self._annotation_file(split), masks=self.masks, images=self.images)
        decide(checked, self.on_error)
        if training and not any(map(has_objects, checked.coco.images)):
            raise DataError(f"{checked.coco.path}: not one of its images has an object that can be used to train on")
        return DetectionDataset(
            checked.coco,
            checked.images,
            self.preprocessing,
            augmentation=self.augmentation if training else None,
            masks=self.masks and training,
            with_empty=self.with_empty or not training,
            seed=self.seed,
            on_error=self.on_error,
        )
