"""Pictures with panoptic annotations, read, varied and collated."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from focalnet.card import Preprocessing
from focalnet.data.datasets.coco_panoptic import PanopticFile, read_ids
from focalnet.data.datasets.pictures import Pictures, read_picture
from focalnet.data.panoptic_transforms import PanopticAugmentation
from focalnet.data.preprocess import normalize, preprocess
from focalnet.data.samples import Samples
from focalnet.data.semantic_transforms import SemanticView, view
from focalnet.samples import ImageInfo, PanopticTarget, Sample, pad_to


class PanopticDataset(Samples[Sample[PanopticTarget], SemanticView]):
    """The pictures of a panoptic annotation file as samples.

    Args:
        annotated: the annotations.
        pictures: where the pictures are.
        maps: where the PNG files of segments are.
        preprocessing: short side, longest side and normalisation; ``max_size`` must be given.
        augmentation: how training pictures are varied; None for evaluation.
        seed: of the augmentation.
        on_error: as for ``Samples``.
    """

    def __init__(
        self,
        annotated: PanopticFile,
        pictures: Pictures,
        maps: Pictures,
        preprocessing: Preprocessing,
        *,
        augmentation: PanopticAugmentation | None = None,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(len(annotated.images), seed=seed, training=augmentation is not None, on_error=on_error)
        self.annotated, self.pictures, self.maps = annotated, pictures, maps
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self._label_of = annotated.label_of()

    @property
    def name(self) -> str:
        return str(self.annotated.path)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.annotated.class_names

    def path(self, index: int) -> str:
        return self.pictures.path(self.annotated.images[index].file_name)

    def read(self, index: int) -> SemanticView:
        entry = self.annotated.images[index]
        ids = read_ids(self.maps, self.annotated.maps[entry.image_id], entry)
        return view(read_picture(self.pictures, entry), torch.from_numpy(ids))

    def prepare(self, read: SemanticView, index: int) -> Sample[PanopticTarget]:
        if self.augmentation is None:
            image, ids = preprocess(read.image, self.preprocessing), read.labels.as_subclass(Tensor)
        else:
            varied = self.augmentation(read)
            image, ids = normalize(varied.image, self.preprocessing), varied.labels.as_subclass(Tensor)
            square = (self.augmentation.crop, self.augmentation.crop)
            image, ids = pad_to(image, square), pad_to(ids, square)
        entry = self.annotated.images[index]
        return Sample(
            image=image,
            target=PanopticTarget(
                ids=ids,
                labels=torch.tensor([self._label_of[s["category_id"]] for s in entry.annotations], dtype=torch.int64),
                crowds=torch.tensor([bool(s["iscrowd"]) for s in entry.annotations], dtype=torch.bool),
            ),
            info=ImageInfo(self.path(index), read.size, entry.image_id),
        )
