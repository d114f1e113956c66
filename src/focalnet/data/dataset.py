"""Images as samples, whatever is known of them: repeatable, and broken ones are named, replaced or left out."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Literal, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from focalnet.card import Preprocessing
from focalnet.data.augment import (
    DetectionAugmentation,
    ImageWithLabels,
    ImageWithObjects,
    PanopticAugmentation,
    SemanticAugmentation,
    with_labels,
    with_objects,
)
from focalnet.data.formats.coco import CocoFile, inside
from focalnet.data.formats.coco_panoptic import PanopticFile, read_ids
from focalnet.data.formats.image_entries import Annotated, Id, read_image
from focalnet.data.formats.label_maps import LabelRule
from focalnet.data.formats.outlines import to_bitmaps
from focalnet.data.formats.pairs import Pairs, check_sizes
from focalnet.data.images import read as decode
from focalnet.data.loader import random_state_kept, seed_all
from focalnet.data.preprocess import Transform, fitted_size, normalize, preprocess
from focalnet.data.readers.image_files import ImageFiles
from focalnet.data.readers.source import MAX_BROKEN_IN_A_ROW, DecodedImages, Source
from focalnet.errors import DataError, ImageError
from focalnet.samples import ImageInfo, LabelMapTarget, ObjectTarget, PanopticTarget, Sample, pad_to

logger = logging.getLogger(__name__)

#: ``(epoch, index)``, or an index alone for epoch 0.
Key: TypeAlias = int | tuple[int, int]

S = TypeVar("S")  # a sample
P = TypeVar("P")  # what it is made of: an image with what is known of it


class Samples(Dataset["S | None"], ABC, Generic[S, P]):
    """What is done to an image is a function of seed, epoch and index alone.

    Args:
        count: number of images.
        seed: with epoch and index it determines what is random.
        training: whether anything is, and whether a broken image is replaced or left out.
        on_error: ``"raise"``: a broken image is an error. ``"skip"``: in training the next whole one takes
            its place, so that batches keep their size; in evaluation it is left out (the sample is None).
    """

    def __init__(self, count: int, *, seed: int, training: bool, on_error: Literal["raise", "skip"]) -> None:
        self.seed, self.training, self.on_error = seed, training, on_error
        # Shared with the workers so that the main process can report: one byte an image, which is only ever set.
        self._broken = torch.zeros(count, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call the set: a path."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """By label."""

    @abstractmethod
    def path(self, index: int) -> str:
        """A name that finds the image again."""

    @abstractmethod
    def read(self, index: int) -> P:
        """An image with what is known of it, as on disk.

        Raises:
            ImageError: it cannot be decoded, or does not fit what is known of it; the message names it.
        """

    @abstractmethod
    def prepare(self, read: P, index: int) -> S:
        """The sample; in training with random numbers of its own."""

    def __len__(self) -> int:
        return len(self._broken)

    def __getitem__(self, key: Key) -> S | None:
        if not 0 <= (key[1] if isinstance(key, tuple) else key) < len(self):
            raise IndexError(f"{key} of {len(self)} samples")  # which also ends a loop over them
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[S | None]:
        """A batch at a time, as torch's loader prefers to ask: the random state is kept once for all."""
        with random_state_kept():
            return [self._sample(*key) if isinstance(key, tuple) else self._sample(0, key) for key in keys]

    def broken(self) -> str:
        """How many images were found broken so far, by any worker, and the first few; or nothing."""
        found = self._broken.nonzero().flatten().tolist()
        names = ", ".join(self.path(index) for index in found[:5])
        return f"{len(found)} broken images ({names}{', ...' * (len(found) > 5)})" if found else ""

    def _sample(self, epoch: int, index: int) -> S | None:
        read, used = self._whole(index)
        if read is None:
            return None
        if self.training:
            seed_all(self.seed, epoch, index)
        return self.prepare(read, used)

    def _whole(self, index: int) -> tuple[P | None, int]:
        tries = min(MAX_BROKEN_IN_A_ROW, len(self)) if self.training else 1
        for candidate in (place % len(self) for place in range(index, index + tries)):
            try:
                return self.read(candidate), candidate
            except ImageError as error:
                if self.on_error == "raise":
                    raise ImageError(f'{error}; to go on without such images: on_error "skip"') from error
                if not self._broken[candidate]:
                    self._broken[candidate] = 1
                    logger.warning("skipped a broken image: %s", error)
        if self.training:
            raise DataError(f"{self.path(index)} and the images after it are all broken, too many to skip")
        return None, index


class ImageDataset(Samples[Sample[int], Image.Image]):
    """The images of a source as samples.

    Args:
        source: the images.
        transform: image to tensor.
        seed: with epoch and index it determines what a random transform does.
        training: whether the transform is random, and whether a broken image is replaced or left out.
        on_error: as for ``Samples``.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        seed: int = 0,
        training: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(len(source), seed=seed, training=training, on_error=on_error)
        self.source, self.transform = source, transform

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def path(self, index: int) -> str:
        return self.source.path(index)

    def read(self, index: int) -> Image.Image:
        return self.source.read(index)

    def prepare(self, read: Image.Image, index: int) -> Sample[int]:
        return Sample(
            image=self.transform(read),
            target=int(self.source.labels[index]),
            info=ImageInfo(self.path(index), (read.height, read.width)),
        )


class MultiLabelDataset(Samples[Sample[Tensor], Image.Image]):
    """Images that can have several classes, or none, as samples.

    Args:
        name: what messages call the set.
        names: of the files, as ``images`` has them.
        images: where the files are.
        targets: for each image and class 0 or 1, ``(M, N)``, float32.
        class_names: by label.
        transform: image to tensor.
        seed: with epoch and index it determines what a random transform does.
        training: whether the transform is random, and whether a broken image is replaced or left out.
        on_error: as for ``Samples``.
        in_memory: decode every image once, now, and keep it.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        images: ImageFiles,
        targets: Tensor,
        class_names: tuple[str, ...],
        transform: Transform,
        *,
        seed: int = 0,
        training: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        in_memory: bool = False,
    ) -> None:
        super().__init__(len(names), seed=seed, training=training, on_error=on_error)
        self._name, self._class_names = name, class_names
        self.names, self.images, self.targets, self.transform = names, images, targets, transform
        self._read = DecodedImages(len(names), self._decode).read if in_memory else self._decode

    @property
    def name(self) -> str:
        return self._name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def path(self, index: int) -> str:
        return self.images.path(self.names[index])

    def read(self, index: int) -> Image.Image:
        return self._read(index)

    def _decode(self, index: int) -> Image.Image:
        try:
            content = self.images.content(self.names[index])
        except OSError as error:
            raise ImageError(f"{self.path(index)}: cannot be read: {error}") from error
        return decode(content, self.path(index))

    def prepare(self, read: Image.Image, index: int) -> Sample[Tensor]:
        info = ImageInfo(self.path(index), (read.height, read.width))
        return Sample(image=self.transform(read), target=self.targets[index].clone(), info=info)


class DetectionDataset(Samples[Sample[ObjectTarget], ImageWithObjects]):
    """The images of an annotation file as samples.

    Args:
        coco: the annotations.
        images: where the files are.
        preprocessing: short side, longest side and normalization; ``max_size`` must be given.
        augmentation: how training images are varied; None for evaluation.
        masks: read segmentations, too.
        with_empty: keep images without any object.
        seed: of the augmentation.
        on_error: as for ``Samples``.
    """

    def __init__(
        self,
        coco: CocoFile,
        images: ImageFiles,
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
        self.coco, self.files, self.preprocessing = coco, images, preprocessing
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
        return self.files.path(self.images[index].file_name)

    def read(self, index: int) -> ImageWithObjects:
        entry = self.images[index]
        image = read_image(self.files, entry)
        objects = [a for a in entry.annotations if not a["iscrowd"]]
        masks = None
        if self.masks:
            masks = to_bitmaps([a["segmentation"] for a in objects], entry.height, entry.width)
        labels = torch.tensor([self._label_of[a["category_id"]] for a in objects], dtype=torch.int64)
        crowd = [a for a in entry.annotations if a["iscrowd"]]
        return with_objects(image, _corners(objects, entry), labels, masks, _corners(crowd, entry))

    def annotated_masks(self, image_id: Id) -> tuple[Tensor, Tensor, Tensor]:
        """All objects of an image, as on disk: masks ``(N, H, W)``, labels, and which are crowds, both ``(N,)``."""
        entry = self._by_id[image_id]
        masks = to_bitmaps([a["segmentation"] for a in entry.annotations], entry.height, entry.width)
        labels = [self._label_of[a["category_id"]] for a in entry.annotations]
        crowds = [bool(a["iscrowd"]) for a in entry.annotations]
        return masks, torch.tensor(labels, dtype=torch.int64), torch.tensor(crowds, dtype=torch.bool)

    def prepare(self, read: ImageWithObjects, index: int) -> Sample[ObjectTarget]:
        longest = self.preprocessing.max_size
        assert longest is not None
        if self.augmentation is None:
            given = read.resized(self.preprocessing.short_side, longest)
        else:
            given = self.augmentation(read, longest)
        return Sample(
            image=normalize(given.image, self.preprocessing),
            target=given.target(),
            info=ImageInfo(self.path(index), read.size, self.images[index].image_id),
        )


def has_objects(image: Annotated) -> bool:
    """Whether anything but crowd regions is annotated."""
    return any(not annotation["iscrowd"] for annotation in image.annotations)


def _corners(annotations: Sequence[dict[str, object]], image: Annotated) -> Tensor:
    """Boxes ``(N, 4)``, x1 y1 x2 y2, within the image."""
    corners = [inside(a["bbox"], image.height, image.width) for a in annotations]  # type: ignore[arg-type]
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


class SemanticDataset(Samples[Sample[LabelMapTarget], ImageWithLabels]):
    """The images of a split with the class of each pixel.

    Args:
        pairs: images and masks.
        rule: what the numbers in the masks mean.
        class_names: by label.
        preprocessing: short side, longest side and normalization; ``max_size`` must be given.
        augmentation: how training images are varied; None for evaluation.
        ratios: the sizes at which images are seen in evaluation, as factors of those of ``preprocessing``.
        seed: of the augmentation.
        on_error: as for ``Samples``.
    """

    def __init__(
        self,
        pairs: Pairs,
        rule: LabelRule,
        class_names: tuple[str, ...],
        preprocessing: Preprocessing,
        *,
        augmentation: SemanticAugmentation | None = None,
        ratios: Sequence[float] = (1.0,),
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(len(pairs), seed=seed, training=augmentation is not None, on_error=on_error)
        self.pairs, self.rule, self.preprocessing, self.augmentation = pairs, rule, preprocessing, augmentation
        self.ratios, self._class_names = ratios, class_names

    @property
    def name(self) -> str:
        return self.pairs.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def path(self, index: int) -> str:
        return self.pairs.images.path(self.pairs.names[index][0])

    def read(self, index: int) -> ImageWithLabels:
        labels = torch.from_numpy(self.pairs.labels(index, self.rule, len(self._class_names)).astype("uint8"))
        image = self.pairs.image(index)
        check_sizes(self.pairs, index, (image.height, image.width), (labels.shape[0], labels.shape[1]))
        return with_labels(image, labels)

    def prepare(self, read: ImageWithLabels, index: int) -> Sample[LabelMapTarget]:
        short, longest = self.preprocessing.short_side, self.preprocessing.max_size
        assert longest is not None
        info = ImageInfo(self.path(index), read.size)
        if self.augmentation is None:
            sizes = [fitted_size(read.size, int(short * ratio), int(longest * ratio)) for ratio in self.ratios]
            image, *views = (preprocess(read.image, self.preprocessing, size) for size in sizes)
            return Sample(image, LabelMapTarget(read.labels.as_subclass(Tensor).long()), info, views)
        varied, crop = self.augmentation(read, short, longest), self.augmentation.crop
        image = pad_to(normalize(varied.image, self.preprocessing), crop)
        return Sample(image, LabelMapTarget(varied.labels.as_subclass(Tensor).long()).padded(crop), info)


class PanopticDataset(Samples[Sample[PanopticTarget], ImageWithLabels]):
    """The images of a panoptic annotation file as samples.

    Args:
        annotated: the annotations.
        images: where the images are.
        maps: where the PNG files of segments are.
        preprocessing: short side, longest side and normalization; ``max_size`` must be given.
        augmentation: how training images are varied; None for evaluation.
        seed: of the augmentation.
        on_error: as for ``Samples``.
    """

    def __init__(
        self,
        annotated: PanopticFile,
        images: ImageFiles,
        maps: ImageFiles,
        preprocessing: Preprocessing,
        *,
        augmentation: PanopticAugmentation | None = None,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(len(annotated.images), seed=seed, training=augmentation is not None, on_error=on_error)
        self.annotated, self.files, self.maps = annotated, images, maps
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self._label_of = annotated.label_of()

    @property
    def name(self) -> str:
        return str(self.annotated.path)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.annotated.class_names

    def path(self, index: int) -> str:
        return self.files.path(self.annotated.images[index].file_name)

    def read(self, index: int) -> ImageWithLabels:
        entry = self.annotated.images[index]
        ids = read_ids(self.maps, self.annotated.maps[entry.image_id], entry)
        return with_labels(read_image(self.files, entry), torch.from_numpy(ids))

    def prepare(self, read: ImageWithLabels, index: int) -> Sample[PanopticTarget]:
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
