"""Inputs of training and evaluation: images, targets, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.card import IGNORED as IGNORED
from focalnet.errors import DataError, InputError

Size = tuple[int, int]  # height and width in pixels
T = TypeVar("T")


@dataclass
class Segments:
    """Mask targets. A segment is an object, all stuff of a class, or (semantic segmentation) all pixels of a class.

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
        masks: ``(N, H, W)``, bool, padded like the batch; None if the data has boxes only.
        ignored: ``(M, 4)``, crowd regions, which are neither object nor background.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    ignored: Tensor

    def segments(self) -> Segments:
        """The objects that still have a pixel after augmentation.

        Raises:
            DataError: there are only boxes.
        """
        if self.masks is None:
            raise DataError("this network learns masks, but the data has boxes only")
        kept = self.masks.flatten(1).any(1)
        return Segments(labels=self.labels[kept], masks=self.masks[kept])

    def padded(self, size: Size) -> ObjectTarget:
        """Pads masks to this height and width."""
        return self if self.masks is None else replace(self, masks=pad_to(self.masks, size))


@dataclass
class LabelMapTarget:
    """The class of each pixel.

    Args:
        labels: ``(H, W)``, int64, from 0, or ``IGNORED``. In training, they have the size of the network's input and
            are padded with ``IGNORED`` like the batch; in evaluation, they have the original size.
    """

    labels: Tensor

    def segments(self) -> Segments:
        """One segment for each class in the label map, in ascending order."""
        classes = self.labels.unique()  # type: ignore[no-untyped-call]
        classes = classes[classes != IGNORED].long()
        return Segments(labels=classes, masks=self.labels == classes[:, None, None])

    def padded(self, size: Size) -> LabelMapTarget:
        """Pads labels with ``IGNORED`` to this height and width."""
        return LabelMapTarget(pad_to(self.labels, size, IGNORED))


@dataclass
class PanopticTarget:
    """The segment of each pixel: an object, or all stuff of a class.

    Args:
        ids: ``(H, W)``, int32: ``i + 1`` for the ``i``-th segment, 0 for none. In training, they are padded like the
            batch; in evaluation, they have the original size.
        labels: ``(N,)``, int64, from 0.
        crowds: ``(N,)``, bool: segments that cover many objects of a class, which are neither trained on nor evaluated.
    """

    ids: Tensor
    labels: Tensor
    crowds: Tensor

    def segments(self) -> Segments:
        """The segments that are not crowds and still have a pixel after augmentation."""
        numbers = torch.arange(1, len(self.labels) + 1, device=self.ids.device)
        masks = self.ids == numbers[:, None, None]
        kept = masks.flatten(1).any(1) & ~self.crowds
        return Segments(labels=self.labels[kept], masks=masks[kept])

    def padded(self, size: Size) -> PanopticTarget:
        """Pads ids with 0 to this height and width."""
        return replace(self, ids=pad_to(self.ids, size))


def pad_to(values: Tensor, size: Size, value: int = 0) -> Tensor:
    """Pads an image, masks or a label map ``(..., h, w)`` on the right and bottom to a height and width.

    Raises:
        InputError: it is larger than that; cropping it silently would give a wrong target.
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
    """The origin of an image. It is not frozen, because Lightning copies batches to devices field by field.

    Args:
        path: path or name of the image.
        original_size: height and width of the stored image, upright.
        image_id: its id in an annotation file; None if there is none.
    """

    path: str
    original_size: Size
    image_id: int | str | None = None


@dataclass
class Sample(Generic[T]):
    """One image with its target.

    Args:
        image: ``(C, H, W)``, preprocessed.
        target: a class index, a tensor of 0 and 1 for each class ``(N,)``, or one of the targets above.
        info: origin of the image.
        views: the same image at other sizes, ``(C, h, w)`` each, for multi-scale evaluation.
    """

    image: Tensor
    target: T
    info: ImageInfo
    views: list[Tensor] = field(default_factory=list)


@dataclass
class View:
    """A batch of images at another size, padded with zeros on the right and bottom, with their sizes before padding."""

    images: Tensor
    sizes: list[Size]

    def pin_memory(self) -> View:
        """Copies the images to page-locked memory, from which they reach a GPU faster."""
        return View(self.images.pin_memory(), self.sizes)


@dataclass
class Batch(Generic[T]):
    """Collated samples whose targets are of one type; ``Batch[int]`` is a batch for classification.

    Args:
        images: ``(B, C, H, W)``, padded with zeros on the right and bottom.
        sizes: height and width of each image before padding.
        targets: a list with one for each image; for classification, a tensor of class indices ``(B,)``, or of class
            shares ``(B, N)`` if images were mixed or can have several classes.
        infos: one for each image.
        views: the same images at other sizes.
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
        """Height and width of each stored image."""
        return [info.original_size for info in self.infos]

    @property
    def paths(self) -> list[str]:
        """The path or name of each image."""
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
