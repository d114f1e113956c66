"""Panoptic data for training: from annotation files, PNG files of segments and images to loaders of batches."""

from __future__ import annotations

import os
from typing import Any

from focalnet.data.augment import PanopticAugmentation
from focalnet.data.dataset import PanopticDataset
from focalnet.data.formats.coco_panoptic import check_panoptic, only_one_stuff_class
from focalnet.data.formats.image_entries import Id
from focalnet.data.formats.problems import decide, say
from focalnet.data.modules.base import AnnotatedData
from focalnet.data.readers.collection import Split
from focalnet.errors import DataError


class PanopticData(AnnotatedData[PanopticDataset]):
    """Loaders of ``samples.Batch`` for training, validation and test.

    The annotations are in COCO's panoptic format: a JSON, and a PNG for each image. By default, a split's file is
    ``annotations/panoptic_train.json`` or ``panoptic_train2017.json`` (and ``val``, ``test``), and its PNG files are
    in a folder of that name. Labels count from 0: first the things by category id, then the stuff.

    Args:
        root: the folder of the data set.
        maps: the folder or uncompressed tar file of the PNG files of segments, relative to the root; default: looked
            for.
        check: open every PNG before training; false where ``focalnet check-data`` has done it once and for all.
        augmentation: how training images are varied, and the size of the result; the default is Mask2Former's.
        kwargs: those of ``AnnotatedData`` and ``DensePredictionData``.

    Raises:
        ConfigError: an option has an impossible value.
    """

    format = "panoptic"
    usual = "annotations/panoptic_{split}.json"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        maps: str | None = None,
        check: bool = True,
        augmentation: PanopticAugmentation = PanopticAugmentation(),  # noqa: B008  # frozen
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.maps, self.check, self.augmentation = maps, check, augmentation

    @property
    def num_things(self) -> int:
        """So many of the first classes are objects; known after ``setup``."""
        assert self.samples, "setup() comes first"
        return next(iter(self.samples.values())).annotated.num_things

    def _category_ids(self, samples: PanopticDataset) -> tuple[Id, ...]:
        return samples.annotated.category_ids

    def _categories(self, samples: PanopticDataset) -> object:
        annotated = samples.annotated
        return annotated.class_names, annotated.category_ids, annotated.num_things

    def _open(self, split: Split) -> PanopticDataset:
        file = self._annotations(split).path
        checked = check_panoptic(self.root, file, images=self.images, maps=self.maps, open_maps=self.check)
        decide(checked, self.on_error)
        say(file, checked.annotated.remarks)
        checked.annotated.images[:] = self._part(checked.annotated.images, split)
        if split == "train" and (why := only_one_stuff_class(checked.annotated)):
            raise DataError(f"{file}: {why}")
        return PanopticDataset(
            checked.annotated,
            checked.images,
            checked.maps,
            self.preprocessing,
            augmentation=self.augmentation if split == "train" else None,
            seed=self.seed,
            on_error=self.on_error,
        )
