"""Pictures with objects, resized, cropped and flipped together, as in the official evaluation and training.

A ``View`` holds tv_tensors, so that torchvision's transforms move boxes and masks with their picture. What
torchvision does otherwise than the official code is here: rounding of sizes, and the choice of sizes and crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image as Pillow
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from focalnet.data.preprocess import fitted_size
from focalnet.data.preprocess import resize as resize_image
from focalnet.errors import ConfigError
from focalnet.samples import ObjectTarget


class View(NamedTuple):
    """A picture ``(3, H, W)``, uint8, with boxes x1 y1 x2 y2, their labels, their masks if any, and ignored regions."""

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes
    labels: Tensor
    masks: tv_tensors.Mask | None
    ignored: tv_tensors.BoundingBoxes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.image.shape[-2:]
        return int(height), int(width)


def view(picture: Pillow.Image, boxes: Tensor, labels: Tensor, masks: Tensor | None, ignored: Tensor) -> View:
    """A picture of 8-bit RGB with what is in it."""
    image = F.to_image(picture)
    size: Any = tuple(image.shape[-2:])

    def framed(corners: Tensor) -> tv_tensors.BoundingBoxes:
        return tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size)

    return View(image, framed(boxes), labels, None if masks is None else tv_tensors.Mask(masks), framed(ignored))


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """How a training picture is varied; the defaults are those of the official detection training.

    Args:
        flip: probability of a left-right flip.
        short_sides: the shorter side in pixels, one of these by chance; the longer one stays below ``data.max_size``.
        crop_prob: probability of cutting out a part first, as DETR does.
        crop_short_sides: what the shorter side is resized to before that cut.
        crop_sides: least and most pixels of each side of the part.
        flip_vertical: probability of an upside-down flip, where up and down mean nothing (microscopy, aerial pictures).
        color_jitter: strength of brightness, contrast and saturation jitter, 0 for none.
    """

    flip: float = 0.5
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    crop_prob: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_sides: tuple[int, int] = (384, 600)
    flip_vertical: float = 0.0
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        for option in ("flip", "flip_vertical", "crop_prob"):
            if not 0 <= getattr(self, option) <= 1:
                raise ConfigError(f"augmentation.{option}={getattr(self, option)} must be a probability, 0 to 1")
        for option in ("short_sides", "crop_short_sides"):
            if not getattr(self, option) or min(getattr(self, option)) < 1:
                raise ConfigError(
                    f"augmentation.{option}={getattr(self, option)} must be one or more numbers of pixels"
                )
        if not 0 < self.crop_sides[0] <= self.crop_sides[1]:
            raise ConfigError(f"augmentation.crop_sides={self.crop_sides} must be two rising numbers of pixels")
        if not 0 <= self.color_jitter <= 1:
            raise ConfigError(f"augmentation.color_jitter={self.color_jitter} must be between 0 and 1")

    def __call__(self, given: View, max_size: int) -> View:
        """Varies a picture; the randomness is torch's own."""
        if _chance(self.flip):
            given = _moved(F.horizontal_flip, given)
        if self.flip_vertical and _chance(self.flip_vertical):
            given = _moved(F.vertical_flip, given)
        if _chance(self.crop_prob):
            given = self._cut_out(resize(given, _one_of(self.crop_short_sides), max_size))
        if self.color_jitter:
            jitter = v2.ColorJitter(self.color_jitter, self.color_jitter, self.color_jitter)
            given = given._replace(image=jitter(given.image))
        return resize(given, _one_of(self.short_sides), max_size)

    def _cut_out(self, given: View) -> View:
        """A part of random size and place; boxes are cut with it, and those outside are dropped."""
        height, width = (_between(min(side, self.crop_sides[0]), min(side, self.crop_sides[1])) for side in given.size)
        top, left = _between(0, given.size[0] - height), _between(0, given.size[1] - width)
        part = _moved(lambda part: F.crop(part, top, left, height, width), given)
        return _without_empty(part)


def resize(given: View, short: int, max_size: int) -> View:
    """Resizes the shorter side to ``short`` pixels, or less where the longer one would pass ``max_size``.

    The picture bilinearly without antialiasing, as the official models saw them; masks by nearest neighbour.
    """
    size = fitted_size(given.size, short, max_size)
    return _without_empty(_moved(lambda part: resize_image(part, size), given))


def to_target(given: View) -> ObjectTarget:
    """What is in the picture, as plain tensors."""
    return ObjectTarget(
        boxes=given.boxes.as_subclass(Tensor).float(),
        labels=given.labels,
        masks=None if given.masks is None else given.masks.as_subclass(Tensor).bool(),
        ignored=given.ignored.as_subclass(Tensor).float(),
    )


def _moved(transform: Any, given: View) -> View:
    """Applied to the picture and all that lies on it; torchvision knows how by the type of each."""
    masks = given.masks
    if masks is not None and not len(masks):  # torchvision's resize cannot take none
        shape = transform(given.image).shape[-2:]
        masks = tv_tensors.Mask(torch.zeros((0, *shape), dtype=masks.dtype))
    elif masks is not None:
        masks = transform(masks)
    return View(transform(given.image), transform(given.boxes), given.labels, masks, transform(given.ignored))


def _without_empty(given: View) -> View:
    """Clipped to the picture, without the boxes that nothing is left of."""
    boxes, ignored = F.clamp_bounding_boxes(given.boxes), F.clamp_bounding_boxes(given.ignored)
    kept, kept_ignored = (((b[:, 2:] > b[:, :2]).all(1)) for b in (boxes, ignored))
    return View(
        given.image,
        tv_tensors.wrap(boxes[kept], like=boxes),
        given.labels[kept],
        None if given.masks is None else tv_tensors.wrap(given.masks[kept], like=given.masks),
        tv_tensors.wrap(ignored[kept_ignored], like=ignored),
    )


def _chance(probability: float) -> bool:
    return bool(torch.rand(()).item() < probability)


def _between(low: int, high: int) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, ()))


def _one_of(values: Sequence[int]) -> int:
    return values[_between(0, len(values) - 1)]
