"""Annotated pictures, read, varied and collated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from focalnet.data import images
from focalnet.data.datasets.coco import Annotated, CocoFile, inside
from focalnet.data.datasets.pictures import Pictures
from focalnet.data.datasets.source import MAX_BROKEN_IN_A_ROW
from focalnet.data.detection_transforms import DetectionAugmentation, View, normalise, pad, resize, to_target, view
from focalnet.data.loading import Key
from focalnet.data.masks import to_bitmaps
from focalnet.data.seeding import random_state_kept, seed_all
from focalnet.errors import DataError, ImageError
from focalnet.structures import DetectionBatch, DetectionSample, Preprocessing, Target

logger = logging.getLogger(__name__)


class DetectionDataset(Dataset["DetectionSample | None"]):
    """The pictures of an annotation file as samples; what is done to one is a function of seed, epoch and index alone.

    Args:
        coco: the annotations.
        pictures: where the files are.
        preprocessing: short side, longest side and normalisation; ``max_size`` must be given.
        augmentation: how training pictures are varied; None for evaluation.
        masks: read segmentations, too.
        with_empty: keep pictures without any object.
        seed: of the augmentation.
        on_error: ``"raise"``: a broken picture is an error. ``"skip"``: in training the next whole one takes its
            place; in evaluation it is left out (the sample is None).
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
        self.coco, self.pictures, self.preprocessing = coco, pictures, preprocessing
        self.augmentation, self.masks, self.seed, self.on_error = augmentation, masks, seed, on_error
        self.images = [image for image in coco.images if with_empty or has_objects(image)]
        self._label_of = coco.label_of()
        # Shared with the workers so that the main process can report.
        self._broken = torch.zeros(len(self.images), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def name(self) -> str:
        return str(self.coco.path)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> DetectionSample | None:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[DetectionSample | None]:
        """A batch at a time, as torch's loader prefers to ask: the random state is kept once for all."""
        with random_state_kept():
            return [self._sample(*key) if isinstance(key, tuple) else self._sample(0, key) for key in keys]

    def broken(self) -> str:
        """How many pictures were found broken so far, by any worker, and the first few; or nothing."""
        found = self._broken.nonzero().flatten().tolist()
        names = [self.pictures.path(self.images[index].file_name) for index in found[:5]]
        return f"{len(found)} broken images ({', '.join(names)}{', ...' * (len(found) > 5)})" if found else ""

    def read(self, index: int) -> View:
        """A picture with what is in it, as on disk.

        Raises:
            ImageError: it cannot be decoded, or has another size than its annotations are for.
        """
        entry = self.images[index]
        path = self.pictures.path(entry.file_name)
        try:
            content = self.pictures.content(entry.file_name)
        except (OSError, KeyError) as error:
            raise ImageError(f"{path}: cannot be read: {error}") from error
        picture = images.read(content, path)
        if picture.size != (entry.width, entry.height):
            raise ImageError(
                f"{path}: has {picture.width} x {picture.height} pixels, its annotations (image {entry.image_id}) "
                f"are for {entry.width} x {entry.height}"
            )
        objects = [a for a in entry.annotations if not a["iscrowd"]]
        masks = None
        if self.masks:
            masks = to_bitmaps([a["segmentation"] for a in objects], entry.height, entry.width)
        labels = torch.tensor([self._label_of[a["category_id"]] for a in objects], dtype=torch.int64)
        crowd = [a for a in entry.annotations if a["iscrowd"]]
        return view(picture, _corners(objects, entry), labels, masks, _corners(crowd, entry))

    def _sample(self, epoch: int, index: int) -> DetectionSample | None:
        given, used = self._whole(index)
        if given is None:
            return None
        size, longest = given.size, self.preprocessing.max_size
        assert longest is not None
        if self.augmentation is None:
            given = resize(given, self.preprocessing.image_size, longest)
        else:
            seed_all(self.seed, epoch, index)
            given = self.augmentation(given, longest)
        entry = self.images[used]
        return DetectionSample(
            image=normalise(given.image, self.preprocessing),
            target=to_target(given),
            original_size=size,
            image_id=entry.image_id,
            path=self.pictures.path(entry.file_name),
        )

    def _whole(self, index: int) -> tuple[View | None, int]:
        tries = 1 if self.augmentation is None else min(MAX_BROKEN_IN_A_ROW, len(self))
        for candidate in (place % len(self) for place in range(index, index + tries)):
            try:
                return self.read(candidate), candidate
            except ImageError as error:
                if self.on_error == "raise":
                    raise ImageError(f'{error}; to go on without such images: on_error "skip"') from error
                if not self._broken[candidate]:
                    self._broken[candidate] = 1
                    logger.warning("skipped a broken image: %s", error)
        if self.augmentation is not None:
            raise DataError(f"{self.name}: image {index + 1} and those after it are all broken, too many to skip")
        return None, index


def has_objects(image: Annotated) -> bool:
    """Whether anything but crowd regions is annotated."""
    return any(not annotation["iscrowd"] for annotation in image.annotations)


def _corners(annotations: Sequence[dict[str, object]], image: Annotated) -> Tensor:
    """Boxes ``(N, 4)``, x1 y1 x2 y2, within the image."""
    corners = [inside(a["bbox"], image.height, image.width) for a in annotations]  # type: ignore[arg-type]
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def collate(samples: Sequence[DetectionSample | None]) -> DetectionBatch:
    """Pads samples to a batch, images and masks alike; broken pictures (None) are left out.

    Raises:
        DataError: there is not one whole picture.
    """
    whole = [sample for sample in samples if sample is not None]
    if not whole:
        raise DataError("every image of a batch is broken, too many to skip; the warnings above name them")
    images_BCHW = pad([sample["image"] for sample in whole])
    height, width = images_BCHW.shape[-2:]
    return DetectionBatch(
        images=images_BCHW,
        sizes=[(sample["image"].shape[-2], sample["image"].shape[-1]) for sample in whole],
        targets=[_padded(sample["target"], height, width) for sample in whole],
        original_sizes=[sample["original_size"] for sample in whole],
        image_ids=[sample["image_id"] for sample in whole],
        paths=[sample["path"] for sample in whole],
    )


def _padded(target: Target, height: int, width: int) -> Target:
    masks = target["masks"]
    if masks is None:
        return target
    padding = (0, width - masks.shape[-1], 0, height - masks.shape[-2])
    return {**target, "masks": torch.nn.functional.pad(masks, padding)}
