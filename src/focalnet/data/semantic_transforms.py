"""Pictures with a label for each pixel, resized, cropped, flipped and recoloured, as in the official training.

A ``SemanticView`` holds tv_tensors, so that torchvision's transforms move labels with their picture. The official
steps that torchvision has not are here: crops without one dominant class, and photometric distortion of mmseg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image as Pillow
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from focalnet.data.preprocess import fitted_size
from focalnet.data.preprocess import resize as resize_image
from focalnet.errors import ConfigError
from focalnet.samples import IGNORED

MOST_CROPS = 10  # tries for one without a dominant class; then the last one is taken


class SemanticView(NamedTuple):
    """A picture ``(3, H, W)``, uint8, and its labels ``(H, W)``, of any integer type."""

    image: tv_tensors.Image
    labels: tv_tensors.Mask

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.image.shape[-2:]
        return int(height), int(width)


def view(picture: Pillow.Image, labels: Tensor) -> SemanticView:
    """A picture of 8-bit RGB with its labels."""
    return SemanticView(F.to_image(picture), tv_tensors.Mask(labels))


@dataclass(frozen=True, kw_only=True)
class SemanticAugmentation:
    """How a training picture is varied; the defaults are those of the official ADE20K training.

    Large-scale jitter, as of Mask2Former on COCO, is ``scale: [0.1, 2.0]``, ``max_class_share: 1.0`` and
    ``data.image_size`` and ``data.max_size`` equal to ``crop``: the picture then fits a square of random size.

    Args:
        scale: least and most of a factor to the size of evaluation, ``data.image_size`` and ``data.max_size``.
        crop: height and width in pixels of the part that is cut out; smaller pictures are padded to it.
        max_class_share: one class must have a smaller share than this of a crop's labelled pixels, or another is
            tried; 1 takes the first.
        flip: probability of a left-right flip.
        flip_vertical: probability of an upside-down flip, where up and down mean nothing (microscopy, aerial pictures).
        photometric: distort brightness, contrast, saturation and hue, each in half of the pictures.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    crop: tuple[int, int] = (512, 512)
    max_class_share: float = 0.75
    flip: float = 0.5
    flip_vertical: float = 0.0
    photometric: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augmentation.scale={self.scale} must be two rising factors")
        if min(self.crop) < 1:
            raise ConfigError(f"augmentation.crop={self.crop} must be a height and a width in pixels")
        for option in ("max_class_share", "flip", "flip_vertical"):
            if not 0 <= getattr(self, option) <= 1:
                raise ConfigError(f"augmentation.{option}={getattr(self, option)} must be between 0 and 1")

    def __call__(self, given: SemanticView, short: int, longest: int) -> SemanticView:
        """Varies a picture; the randomness is torch's own. The result is not larger than ``crop``, but may be smaller.

        Args:
            given: as on disk.
            short: pixels of the short side in evaluation.
            longest: most pixels of the long side in evaluation.
        """
        factor = _uniform(*self.scale)
        given = resize(given, max(int(short * factor), 1), max(int(longest * factor), 1))
        given = self._cut_out(given)
        if _chance(self.flip):
            given = _moved(F.horizontal_flip, given)
        if self.flip_vertical and _chance(self.flip_vertical):
            given = _moved(F.vertical_flip, given)
        return given._replace(image=distort(given.image)) if self.photometric else given

    def _cut_out(self, given: SemanticView) -> SemanticView:
        height, width = (min(side, most) for side, most in zip(given.size, self.crop, strict=True))
        for _ in range(MOST_CROPS if self.max_class_share < 1 else 1):
            top, left = _between(0, given.size[0] - height), _between(0, given.size[1] - width)
            if _largest_share(given.labels[top : top + height, left : left + width]) < self.max_class_share:
                break
        return _moved(lambda part: F.crop(part, top, left, height, width), given)


def resize(given: SemanticView, short: int, longest: int) -> SemanticView:
    """Resizes the shorter side to ``short`` pixels, or less where the longer one would pass ``longest``.

    The picture bilinearly without antialiasing, as the official models saw them; labels by nearest neighbour.
    """
    size = fitted_size(given.size, short, longest)
    return _moved(lambda part: resize_image(part, size), given)


def distort(image: tv_tensors.Image) -> tv_tensors.Image:
    """Brightness, contrast, saturation and hue at random, in mmseg's order and strengths.

    Args:
        image: ``(3, H, W)``, uint8.
    """
    colours = image.as_subclass(Tensor).float() / 255
    if _chance(0.5):
        colours = (colours + _uniform(-32 / 255, 32 / 255)).clamp(0, 1)
    contrast_last = _chance(0.5)
    if not contrast_last and _chance(0.5):
        colours = (colours * _uniform(0.5, 1.5)).clamp(0, 1)
    if _chance(0.5):
        colours = _saturate(colours, _uniform(0.5, 1.5))
    if _chance(0.5):
        colours = F.adjust_hue(colours, _uniform(-0.1, 0.1))
    if contrast_last and _chance(0.5):
        colours = (colours * _uniform(0.5, 1.5)).clamp(0, 1)
    return tv_tensors.Image((255 * colours).round().byte())


def _saturate(colours_3HW: Tensor, factor: float) -> Tensor:
    """Saturation in HSV times a factor, at most 1: how far below the brightest colour the others are."""
    brightest = colours_3HW.amax(0)
    below = brightest - colours_3HW
    most = brightest / below.amax(0).clamp(min=1e-6)  # the factor that makes the darkest colour 0
    return brightest - below * most.clamp(max=factor)


def _largest_share(labels: Tensor) -> float:
    """The share of the most frequent class among labelled pixels; 1 where there is only one, or none."""
    counts = torch.bincount(labels.flatten())
    counts[IGNORED:] = 0
    return 1.0 if not counts.any() else float(counts.max() / counts.sum())


def _moved(transform: Any, given: SemanticView) -> SemanticView:
    return SemanticView(transform(given.image), transform(given.labels))


def _chance(probability: float) -> bool:
    return bool(torch.rand(()).item() < probability)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _between(low: int, high: int) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, ()))
