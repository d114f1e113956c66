"""Detection data for training: from annotation files and images to loaders of batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from focalnet.data.augment import DetectionAugmentation
from focalnet.data.dataset import DetectionDataset, has_objects
from focalnet.data.formats.coco import check_coco, empty_root
from focalnet.data.formats.image_entries import Id
from focalnet.data.formats.problems import decide, say
from focalnet.data.formats.sets import has_outlines, root_has_objects
from focalnet.data.modules.base import AnnotatedData
from focalnet.data.readers.collection import Split
from focalnet.errors import DataError

logger = logging.getLogger(__name__)


class DetectionData(AnnotatedData[DetectionDataset]):
    """Loaders of ``samples.Batch`` for training, validation and test.

    The annotations are in COCO's JSON format, or as YOLO, Pascal VOC, CVAT, Label Studio, labelme, VGG Image Annotator
    and Open Images write them. By default, COCO's file of a split is ``annotations/instances_train.json`` or
    ``instances_train2017.json``, ``train/_annotations.coco.json`` or ``train.json`` (and ``val``, ``test``); or there
    is one for all. Everything is checked before training. In training, upright images share a batch, and so do the
    others.

    Args:
        root: the folder of the data set.
        masks: read segmentations, which every object must then have; where none has any, boxes are trained.
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

    def _is_measured_with_root(self, content: Mapping[str, Any]) -> bool:
        """Whether the network that is measured has a class for a category that is empty, and above all others."""
        return empty_root(content) is not None and len(self.class_order) == len(content["categories"])

    def _category_ids(self, samples: DetectionDataset) -> tuple[Id, ...]:
        return samples.coco.category_ids

    def _categories(self, samples: DetectionDataset) -> object:
        return samples.coco.class_names, samples.coco.category_ids

    def _most_demanding(self, samples: DetectionDataset) -> Sequence[int]:
        counts = [-len(image.annotations) for image in samples.images]
        return sorted(range(len(counts)), key=counts.__getitem__)

    def _largest_size(self) -> tuple[int, int]:
        longest = self.preprocessing.max_size
        assert longest is not None
        return min(max(self.augmentation.short_sides), longest), longest

    def _groups(self, samples: DetectionDataset) -> Sequence[int]:
        return [image.width < image.height for image in samples.images]

    def _open(self, split: Split) -> DetectionDataset:
        training, found = split == "train", self._annotations(split)
        written = found.read()
        others = (one for one in map(self._own, get_args(Split)) if one is not None)  # looked for only if need be
        if self.masks and not self.samples and written.content["annotations"] and not has_outlines(written.content):
            logger.warning("%s: has boxes only, so masks are neither trained nor measured (data.masks)", found.path)
            self.masks = False
        checked = check_coco(
            self.root if found.set is None else found.set.root,
            found.path,
            masks=self.masks,
            images=self.images if self.images is not None or found.set is None else "",
            written=written,
            keep_root=root_has_objects(written.content, others) or self._is_measured_with_root(written.content),
        )
        decide(checked, self.on_error)
        say(found.path, checked.coco.remarks)
        checked.coco.images[:] = self._part(checked.coco.images, split)
        if training and not any(map(has_objects, checked.coco.images)):
            raise DataError(f"{checked.coco.path}: none of its images has an object to train on")
        return DetectionDataset(
            checked.coco.in_order_of(self.class_order),
            checked.images,
            self.preprocessing,
            augmentation=self.augmentation if training else None,
            masks=self.masks and training,
            with_empty=self.with_empty or not training,
            seed=self.seed,
            on_error=self.on_error,
        )
