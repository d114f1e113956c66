"""Annotated pictures, read, varied and collated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from focalnet.card import Preprocessing
from focalnet.data.datasets.coco import Annotated, CocoFile, inside
from focalnet.data.datasets.pictures import Pictures, read_picture
from focalnet.data.detection_transforms import DetectionAugmentation, View, resize, to_target, view
from focalnet.data.masks import to_bitmaps
from focalnet.data.preprocess import normalize
from focalnet.data.samples import Samples
from focalnet.samples import ImageInfo, ObjectTarget, Sample


class DetectionDataset(Samples[Sample[ObjectTarget], View]):
    """The pictures of an annotation file as samples.

    Args:
        coco: the annotations.
        pictures: where the files are.
        preprocessing: short side, longest side and normalisation; ``max_size`` must be given.
        augmentation: how training pictures are varied; None for evaluation.
        masks: read segmentations, too.
        with_empty: keep pictures without any object.
        seed: of the augmentation.
        on_error: as for ``Samples``.
    """

    def __init__(
        self,
        coco: CocoFile,
        pictures: Pictures,
        preprocessing: Preprocessing,
        *,
        augmentation: DetectionAugmentation | None = None,
        masks: bool = True,
        with_empty: bool = True,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.images = [image for image in coco.images if with_empty or has_objects(image)]
        super().__init__(len(self.images), seed=seed, training=augmentation is not None, on_error=on_error)
        self.coco, self.pictures, self.preprocessing = coco, pictures, preprocessing
        self.augmentation, self.masks = augmentation, masks
        self._label_of = coco.label_of()
        self._by_id = {image.image_id: image for image in self.images}

    @property
    def name(self) -> str:
        return str(self.coco.path)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.coco.class_names

    def path(self, index: int) -> str:
        return self.pictures.path(self.images[index].file_name)

    def read(self, index: int) -> View:
        entry = self.images[index]
        picture = read_picture(self.pictures, entry)
        objects = [a for a in entry.annotations if not a["iscrowd"]]
        masks = None
        if self.masks:
            masks = to_bitmaps([a["segmentation"] for a in objects], entry.height, entry.width)
        labels = torch.tensor([self._label_of[a["category_id"]] for a in objects], dtype=torch.int64)
        crowd = [a for a in entry.annotations if a["iscrowd"]]
        return view(picture, _corners(objects, entry), labels, masks, _corners(crowd, entry))

    def annotated_masks(self, image_id: int) -> tuple[Tensor, Tensor, Tensor]:
        """All objects of an image, as on disk: masks ``(N, H, W)``, labels, and which are crowds, both ``(N,)``."""
        entry = self._by_id[image_id]
        masks = to_bitmaps([a["segmentation"] for a in entry.annotations], entry.height, entry.width)
        labels = [self._label_of[a["category_id"]] for a in entry.annotations]
        crowds = [bool(a["iscrowd"]) for a in entry.annotations]
        return masks, torch.tensor(labels, dtype=torch.int64), torch.tensor(crowds, dtype=torch.bool)

    def prepare(self, read: View, index: int) -> Sample[ObjectTarget]:
        longest = self.preprocessing.max_size
        assert longest is not None
        if self.augmentation is None:
            given = resize(read, self.preprocessing.image_size, longest)
        else:
            given = self.augmentation(read, longest)
        return Sample(
            image=normalize(given.image, self.preprocessing),
            target=to_target(given),
            info=ImageInfo(self.path(index), read.size, self.images[index].image_id),
        )


def has_objects(image: Annotated) -> bool:
    """Whether anything but crowd regions is annotated."""
    return any(not annotation["iscrowd"] for annotation in image.annotations)


def _corners(annotations: Sequence[dict[str, object]], image: Annotated) -> Tensor:
    """Boxes ``(N, 4)``, x1 y1 x2 y2, within the image."""
    corners = [inside(a["bbox"], image.height, image.width) for a in annotations]  # type: ignore[arg-type]
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
