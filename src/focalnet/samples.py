"""What goes into a network: images, and the targets they are trained on or measured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypedDict, TypeVar

import torch
from torch import Tensor

from focalnet.errors import DataError

Size = tuple[int, int]  # height and width in pixels
T = TypeVar("T")

IGNORED = 255
"""In a label map: this pixel is of no class, neither trained on nor measured."""


@dataclass
class Segments:
    """What masks are trained on: an object, all stuff of a class, or (semantic segmentation) all pixels of a class.

    Args:
        labels: ``(N,)``, int64, from 0.
        masks: ``(N, H, W)``, bool.
    """

    labels: Tensor
    masks: Tensor


@dataclass
class ObjectTarget:
    """The objects in an image, in pixels of the image as the network sees it.

    Args:
        boxes: ``(N, 4)``, x1 y1 x2 y2.
        labels: ``(N,)``, int64, from 0.
        masks: ``(N, H, W)``, bool, padded like the batch; None where the data has boxes only.
        ignored: ``(M, 4)``, crowd regions, neither object nor background.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    ignored: Tensor

    def segments(self) -> Segments:
        """The objects of which an augmentation has left a pixel.

        Raises:
            DataError: there are boxes only.
        """
        if self.masks is None:
            raise DataError("this network learns masks, but the data has boxes only")
        kept = self.masks.flatten(1).any(1)
        return Segments(labels=self.labels[kept], masks=self.masks[kept])


@dataclass
class LabelMapTarget:
    """The class of each pixel.

    Args:
        labels: ``(H, W)``, int64, from 0, or ``IGNORED``: in training those of the image as the network sees it, padded
            with ``IGNORED`` like the batch; in evaluation of the original size.
    """

    labels: Tensor

    def segments(self) -> Segments:
        """One segment for each class that is there, the lowest first."""
        found = self.labels.unique()  # type: ignore[no-untyped-call]
        found = found[found != IGNORED].long()
        return Segments(labels=found, masks=self.labels == found[:, None, None])


@dataclass
class PanopticTarget:
    """The segment of each pixel: an object, or all stuff of a class.

    Args:
        ids: ``(H, W)``, int32: ``i + 1`` for the ``i``-th segment, 0 for none; in training padded like the batch, in
            evaluation of the original size.
        labels: ``(N,)``, int64, from 0.
        crowds: ``(N,)``, bool: many objects of a class in one segment, neither trained on nor a mistake.
    """

    ids: Tensor
    labels: Tensor
    crowds: Tensor

    def segments(self) -> Segments:
        """Those that are no crowds and of which an augmentation has left a pixel."""
        numbers = torch.arange(1, len(self.labels) + 1, device=self.ids.device)
        masks = self.ids == numbers[:, None, None]
        kept = masks.flatten(1).any(1) & ~self.crowds
        return Segments(labels=self.labels[kept], masks=masks[kept])


@dataclass(frozen=True)
class ImageInfo:
    """Where an image came from.

    Args:
        path: a name that finds it again.
        original_size: height and width of the image as it is on disk, upright.
        image_id: its number in an annotation file; None where there is none.
    """

    path: str
    original_size: Size
    image_id: int | None = None


@dataclass
class Sample(Generic[T]):
    """One image with its target.

    Args:
        image: ``(C, H, W)``, as the network sees it.
        target: a class index, or one of the targets above.
        info: where it came from.
        views: the same image at further sizes, ``(C, h, w)`` each; for evaluation at several.
    """

    image: Tensor
    target: T
    info: ImageInfo
    views: list[Tensor] = field(default_factory=list)


@dataclass
class View:
    """A batch of images at one more size, padded with zeros right and below, and the sizes before padding."""

    images: Tensor
    sizes: list[Size]


@dataclass
class Batch(Generic[T]):
    """Collated samples.

    Args:
        images: ``(B, C, H, W)``, padded with zeros right and below.
        sizes: height and width of each image before padding.
        targets: one for each image; of classification a tensor of class indices ``(B,)``, or of shares of each class
            ``(B, N)`` where images were mixed.
        infos: one for each image.
        views: the same images at further sizes.
    """

    images: Tensor
    sizes: list[Size]
    targets: Sequence[T]
    infos: list[ImageInfo]
    views: list[View] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def original_sizes(self) -> list[Size]:
        """Height and width of each image as it is on disk."""
        return [info.original_size for info in self.infos]


class ClassificationSample(TypedDict):
    """One labelled image of a data set: ``image`` is ``(C, H, W)``, ``path`` says where it came from."""

    image: Tensor
    label: int
    path: str


class ClassificationBatch(TypedDict):
    """Collated samples: ``images`` ``(B, C, H, W)``; ``labels`` ``(B,)``, or ``(B, N)`` when mixed."""

    images: Tensor
    labels: Tensor
    paths: list[str]


class DetectionSample(TypedDict):
    """One annotated image: ``image`` is ``(C, H, W)``; ``original_size`` ``(height, width)`` on disk."""

    image: Tensor
    target: ObjectTarget
    original_size: tuple[int, int]
    image_id: int
    path: str


class DetectionBatch(TypedDict):
    """Collated samples: ``images`` ``(B, C, H, W)``, padded with zeros right and below; ``sizes`` are those before."""

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[ObjectTarget]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    paths: list[str]


class SemanticSample(TypedDict):
    """One image and the class of each of its pixels.

    ``image`` is ``(C, H, W)``; ``labels`` ``(H, W)``, int64, from 0, or ``IGNORED``: in training those of the image as
    the network sees it, in evaluation ``(original height, original width)``. ``others`` is the image at further sizes,
    in evaluation at several.
    """

    image: Tensor
    others: list[Tensor]
    labels: Tensor
    original_size: tuple[int, int]
    path: str


class SemanticBatch(TypedDict):
    """Collated samples: ``images`` ``(B, C, H, W)``, padded with zeros right and below; ``sizes`` are those before.

    ``others`` are further images of the same kind with their sizes, see ``SemanticSample``. ``labels`` are one map for
    each image, see there; in training padded with ``IGNORED`` like the images.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    others: list[tuple[Tensor, list[tuple[int, int]]]]
    labels: list[Tensor]
    original_sizes: list[tuple[int, int]]
    paths: list[str]


class PanopticSample(TypedDict):
    """One image with its segments: in training as the network sees it, in evaluation the truth of the original size."""

    image: Tensor
    truth: PanopticTarget
    original_size: tuple[int, int]
    image_id: int
    path: str


class PanopticBatch(TypedDict):
    """Collated samples: ``images`` ``(B, C, H, W)``, padded with zeros right and below; ``sizes`` are those before.

    ``truths`` are one for each image, see ``PanopticSample``; in training their ``ids`` are padded like the images.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    truths: list[PanopticTarget]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    paths: list[str]
