"""Panoptic data for training: from annotation files, PNG files of segments and pictures to loaders of batches."""

from __future__ import annotations

import os
from typing import Any

from focalnet.data.annotated import AnnotatedData
from focalnet.data.check import decide
from focalnet.data.datasets.collection import Part
from focalnet.data.panoptic_check import check_panoptic, only_stuff_of_one_kind
from focalnet.data.panoptic_samples import PanopticDataset
from focalnet.data.panoptic_transforms import PanopticAugmentation
from focalnet.errors import DataError


class PanopticData(AnnotatedData[PanopticDataset]):
    """Loaders of ``samples.Batch`` for training, validation and test.

    The annotations are in COCO's panoptic form: a JSON, and a PNG for each image. Without other word, a part's file is
    ``annotations/panoptic_train.json`` or ``panoptic_train2017.json`` (and ``val``, ``test``), and its PNG files are
    in a folder of that name. Labels count from 0: first the things by category id, then the stuff.

    Args:
        root: the folder of the data set.
        maps: the folder or uncompressed tar file of the PNG files of segments, relative to the root; default: looked
            for.
        check: open every PNG before training; false where ``focalnet check-data`` has done it once and for all.
        augmentation: how training images are varied, and the size of the result; the default is Mask2Former's.
        kwargs: those of ``AnnotatedData`` and ``DenseData``.

    Raises:
        ConfigError: an option has an impossible value.
    """

    form = "panoptic"
    usual = "annotations/panoptic_{part}.json"

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

    def _categories(self, samples: PanopticDataset) -> object:
        annotated = samples.annotated
        return annotated.class_names, annotated.category_ids, annotated.num_things

    def _open(self, part: Part) -> PanopticDataset:
        file = self._annotation_file(part)
        checked = check_panoptic(self.root, file, images=self.pictures, maps=self.maps, look=self.check)
        decide(checked, self.on_error)
        if part == "train" and (why := only_stuff_of_one_kind(checked.annotated)):
            raise DataError(f"{file}: {why}")
        return PanopticDataset(
            checked.annotated,
            checked.pictures,
            checked.maps,
            self.preprocessing,
            augmentation=self.augmentation if part == "train" else None,
            seed=self.seed,
            on_error=self.on_error,
        )
