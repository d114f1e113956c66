"""What goes into a network: images, and the targets they are trained on or measured by."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import DataError, InputError

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

    def padded(self, size: Size) -> ObjectTarget:
        """With masks of this height and width."""
        return self if self.masks is None else replace(self, masks=pad_to(self.masks, size))


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

    def padded(self, size: Size) -> LabelMapTarget:
        """With labels of this height and width; those added are ``IGNORED``."""
        return LabelMapTarget(pad_to(self.labels, size, IGNORED))


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

    def padded(self, size: Size) -> PanopticTarget:
        """With ids of this height and width; those added are 0."""
        return replace(self, ids=pad_to(self.ids, size))


def pad_to(values: Tensor, size: Size, value: int = 0) -> Tensor:
    """Pads an image, masks or a label map ``(..., h, w)`` right and below to a height and width.

    Raises:
        InputError: it is larger than that; a target of the original size would silently be cut.
    """
    if values.shape[-2] > size[0] or values.shape[-1] > size[1]:
        raise InputError(
            f"{values.shape[-2]} x {values.shape[-1]} pixels of a target or image do not fit into "
            f"{size[0]} x {size[1]}: "
            "targets of training have the size of their image as the network sees it"
        )
    padding = (0, size[1] - values.shape[-1], 0, size[0] - values.shape[-2])
    return F.pad(values, padding, value=value)


@dataclass
class ImageInfo:
    """Where an image came from. It is not frozen because Lightning copies batches to devices field by field.

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

    def pin_memory(self) -> View:
        """Copies the images to page-locked memory, from which they reach a GPU faster."""
        return View(self.images.pin_memory(), self.sizes)


@dataclass
class Batch(Generic[T]):
    """Collated samples whose targets are of one type; ``Batch[int]`` is a batch for classification.

    Args:
        images: ``(B, C, H, W)``, padded with zeros right and below.
        sizes: height and width of each image before padding.
        targets: a list with one for each image; of classification a tensor of class indices ``(B,)``, or of shares of
            each class ``(B, N)`` where images were mixed.
        infos: one for each image.
        views: the same images at further sizes.
    """

    images: Tensor
    sizes: list[Size]
    targets: Any
    infos: list[ImageInfo]
    views: list[View] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def original_sizes(self) -> list[Size]:
        """Height and width of each image as it is on disk."""
        return [info.original_size for info in self.infos]

    @property
    def paths(self) -> list[str]:
        """A name of each image that finds it again."""
        return [info.path for info in self.infos]

    def pin_memory(self) -> Batch[T]:
        """Copies all tensors to page-locked memory; loaders call it with ``pin_memory=True``."""
        targets = self.targets
        return replace(
            self,
            images=self.images.pin_memory(),
            targets=targets.pin_memory() if isinstance(targets, Tensor) else [_pinned(target) for target in targets],
            views=[view.pin_memory() for view in self.views],
        )


def _pinned(target: Any) -> Any:
    tensors = {field.name: getattr(target, field.name) for field in fields(target)}
    return replace(target, **{name: one.pin_memory() for name, one in tensors.items() if isinstance(one, Tensor)})
