"""Detection data for training: from annotation files and pictures to loaders of batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from focalnet.data.annotated import AnnotatedData
from focalnet.data.check import check_part, decide
from focalnet.data.datasets.collection import Part
from focalnet.data.detection_samples import DetectionDataset
from focalnet.data.detection_transforms import DetectionAugmentation


class DetectionData(AnnotatedData[DetectionDataset]):
    """Loaders of ``samples.Batch`` for training, validation and test.

    The annotations are in COCO's JSON form; ``focalnet convert-data`` makes it of Pascal VOC's XML. Without other word,
    a part's file is ``annotations/instances_train.json`` or ``instances_train2017.json``,
    ``train/_annotations.coco.json`` or ``train.json`` (and ``val``, ``test``). Everything is checked before training.
    In training, upright pictures share a batch, and so do the others.

    Args:
        root: the folder of the data set.
        masks: read segmentations, which every object must then have.
        with_empty: train on pictures without objects, too; the official training leaves them out.
        augmentation: how training images are varied; the default is the official one. ``max_size`` holds for it, too.
        kwargs: those of ``AnnotatedData`` and ``DenseData``.

    Raises:
        ConfigError: an option has an impossible value.
    """

    form = "instances"
    usual = "annotations/instances_{part}.json or {part}/_annotations.coco.json"

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

    def _kinds(self, samples: DetectionDataset) -> Sequence[int]:
        return [image.width < image.height for image in samples.images]

    def _open(self, part: Part) -> DetectionDataset:
        training = part == "train"
        checked = check_part(self.root, self._annotation_file(part), masks=self.masks, images=self.pictures)
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
