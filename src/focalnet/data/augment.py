"""How training images are varied, with what lies on them: augmentations of the four tasks, in the official settings.

What timm and torchvision have is theirs. Here is what they do otherwise than the official code: choices of sizes and
crops, crops without one dominant class, and mmseg's photometric distortion. Images travel with their objects or labels
as tv_tensors, so that torchvision moves all of them together. The four are one file because they share these steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import PIL.Image
import torch
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms, tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from focalnet.card import Preprocessing
from focalnet.data.preprocess import Transform, cover, fitted_size, resize
from focalnet.errors import ConfigError
from focalnet.samples import IGNORED, ObjectTarget

MOST_CROPS = 10  # tries for one without a dominant class; then the last one is taken


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training image is varied; the defaults are the paper's for ImageNet (its appendix, table of recipes).

    Args:
        crop: ``"resized"``: a random part, resized; ``"padded"``: resized whole, padded, a random crop of
            that (small images); ``"center"``: no variation, as in evaluation.
        scale: of ``"resized"``, the part's area over the image's: least and most.
        ratio: of ``"resized"``, the part's width over its height: least and most.
        padding: of ``"padded"``, pixels on each side (black).
        flip: probability of a left-right flip; 0 where left and right differ in meaning (digits, text).
        flip_vertical: probability of an upside-down flip, where up and down mean nothing (microscopy, aerial images).
        rotation: most degrees that the image is turned, either way, before the crop; the corners become black.
        policy: timm's name of a policy (``"rand-m9-mstd0.5-inc1"``: RandAugment), or ``"trivial"`` for
            TrivialAugment, or none.
        color_jitter: strength of brightness, contrast and saturation jitter. As in the official training,
            a policy takes its place: it acts only where ``policy`` is none.
        erase_prob: probability of erasing a random rectangle, after normalization.
        erase_mode: filled with noise (``"pixel"``), one random color (``"rand"``) or the mean color
            (``"const"``, known as cutout).
    """

    crop: Literal["resized", "padded", "center"] = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    flip: float = 0.5
    flip_vertical: float = 0.0
    rotation: float = 0.0
    policy: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    erase_prob: float = 0.25
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"

    def __post_init__(self) -> None:
        if not 0 <= self.rotation <= 180:
            raise ConfigError(f"augmentation.rotation={self.rotation} must be degrees between 0 and 180")
        for option in ("flip", "flip_vertical", "erase_prob"):
            if not 0 <= getattr(self, option) <= 1:
                raise ConfigError(f"augmentation.{option}={getattr(self, option)} must be a probability, 0 to 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"augmentation.scale={self.scale} must be two rising numbers between 0 and 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"augmentation.ratio={self.ratio} must be two rising numbers above 0")
        for option in ("padding", "color_jitter"):
            if getattr(self, option) < 0:
                raise ConfigError(f"augmentation.{option}={getattr(self, option)} must not be negative")

    def build(self, preprocessing: Preprocessing) -> Transform:
        """The transform; its randomness is that of ``random``, ``numpy.random`` and ``torch``.

        Raises:
            ConfigError: ``policy`` is not one timm knows.
        """
        size, mode = preprocessing.crop, transforms.InterpolationMode(preprocessing.interpolation)
        aspect = size[1] / size[0]
        trivial = self.policy == "trivial"
        try:
            crop, vary, finish = create_transform(
                size,
                is_training=True,
                separate=True,
                scale=self.scale,
                ratio=(self.ratio[0] * aspect, self.ratio[1] * aspect),
                hflip=self.flip,
                vflip=self.flip_vertical,
                auto_augment=None if trivial else self.policy,
                color_jitter=None if trivial or not self.color_jitter else self.color_jitter,  # type: ignore[arg-type]
                interpolation=preprocessing.interpolation,
                mean=preprocessing.mean,
                std=preprocessing.std,
                re_prob=self.erase_prob,
                re_mode=self.erase_mode,
            )
        except (AssertionError, KeyError, ValueError) as error:  # timm's ways to refuse a policy
            raise ConfigError(
                f'augmentation.policy="{self.policy}" is not a policy timm knows; '
                'e.g. "rand-m9-mstd0.5-inc1", "trivial" or null'
            ) from error
        flip = crop.transforms[1:]
        if self.crop != "resized":
            padded = self.crop == "padded"
            crop_pct = 1.0 if padded else preprocessing.crop_pct
            how = preprocessing
            whole = partial(cover, crop=size, crop_pct=crop_pct, interpolation=how.interpolation, fit=how.fit)
            cut = transforms.RandomCrop(size, self.padding) if padded else transforms.CenterCrop(size)
            crop.transforms = [whole, cut, *flip]
        if self.rotation:
            crop.transforms.insert(0, transforms.RandomRotation(self.rotation, transforms.InterpolationMode.BILINEAR))
        if trivial:
            vary.transforms = [transforms.TrivialAugmentWide(interpolation=mode)]
        elif self.policy:
            _allow_zero_bits(vary.transforms[0])
        augment: Transform = transforms.Compose(crop.transforms + vary.transforms + finish.transforms)
        return augment


def _allow_zero_bits(policy: Any) -> None:
    # timm's Posterize keeps 0 bits at full strength, a black image; recent Pillow refuses that number.
    operations = policy.ops if hasattr(policy, "ops") else [op for stage in policy.policy for op in stage]
    for operation in operations:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize


def _posterize(image: PIL.Image.Image, bits: int, **options: Any) -> PIL.Image.Image:
    black: PIL.Image.Image = auto_augment.posterize(image, max(bits, 1), **options)  # type: ignore[no-untyped-call]
    return black.point(lambda value: 0) if bits < 1 else black


class ImageWithObjects(NamedTuple):
    """An image ``(C, H, W)``, uint8, with boxes x1 y1 x2 y2, their labels, their masks if any, and ignored regions."""

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

    def apply(self, transform: Any) -> ImageWithObjects:
        """Transforms the image and all that lies on it; torchvision knows how by the type of each."""
        masks = self.masks
        if masks is not None and not len(masks):  # torchvision's resize cannot take none
            shape = transform(self.image).shape[-2:]
            masks = tv_tensors.Mask(torch.zeros((0, *shape), dtype=masks.dtype))
        elif masks is not None:
            masks = transform(masks)
        image, boxes, ignored = transform(self.image), transform(self.boxes), transform(self.ignored)
        return ImageWithObjects(image, boxes, self.labels, masks, ignored)

    def resized(self, short: int, longest: int) -> ImageWithObjects:
        """The shorter side has ``short`` pixels, or less where the longer one would pass ``longest``.

        The image is resized bilinearly without antialiasing, as the official models saw it; masks by nearest neighbor.
        """
        size = fitted_size(self.size, short, longest)
        return self.apply(lambda part: resize(part, size)).without_empty()

    def without_empty(self) -> ImageWithObjects:
        """Clipped to the image, without the boxes that nothing is left of."""
        boxes, ignored = F.clamp_bounding_boxes(self.boxes), F.clamp_bounding_boxes(self.ignored)
        kept, kept_ignored = (((b[:, 2:] > b[:, :2]).all(1)) for b in (boxes, ignored))
        return ImageWithObjects(
            self.image,
            tv_tensors.wrap(boxes[kept], like=boxes),
            self.labels[kept],
            None if self.masks is None else tv_tensors.wrap(self.masks[kept], like=self.masks),
            tv_tensors.wrap(ignored[kept_ignored], like=ignored),
        )

    def target(self) -> ObjectTarget:
        """What is in the image, as plain tensors."""
        return ObjectTarget(
            boxes=self.boxes.as_subclass(Tensor).float(),
            labels=self.labels,
            masks=None if self.masks is None else self.masks.as_subclass(Tensor).bool(),
            ignored=self.ignored.as_subclass(Tensor).float(),
        )


def with_objects(
    image: PIL.Image.Image, boxes: Tensor, labels: Tensor, masks: Tensor | None, ignored: Tensor
) -> ImageWithObjects:
    """An image with what is in it."""
    pixels = F.to_image(image)
    size: Any = tuple(pixels.shape[-2:])

    def framed(corners: Tensor) -> tv_tensors.BoundingBoxes:
        return tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size)

    bitmaps = None if masks is None else tv_tensors.Mask(masks)
    return ImageWithObjects(pixels, framed(boxes), labels, bitmaps, framed(ignored))


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """How a training image is varied; the defaults are those of the official detection training.

    Args:
        flip: probability of a left-right flip.
        short_sides: the shorter side in pixels, one of these by chance; the longer one stays below ``data.max_size``.
        crop_prob: probability of cropping first, as DETR does.
        crop_short_sides: what the shorter side is resized to before that cut.
        crop_sides: least and most pixels of each side of the part.
        flip_vertical: probability of an upside-down flip, where up and down mean nothing (microscopy, aerial images).
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

    def __call__(self, given: ImageWithObjects, max_size: int) -> ImageWithObjects:
        """Varies an image; the randomness is torch's own."""
        if _chance(self.flip):
            given = given.apply(F.horizontal_flip)
        if self.flip_vertical and _chance(self.flip_vertical):
            given = given.apply(F.vertical_flip)
        if _chance(self.crop_prob):
            given = self._crop(given.resized(_one_of(self.crop_short_sides), max_size))
        if self.color_jitter:
            jitter = v2.ColorJitter(self.color_jitter, self.color_jitter, self.color_jitter)
            given = given._replace(image=jitter(given.image))
        return given.resized(_one_of(self.short_sides), max_size)

    def _crop(self, given: ImageWithObjects) -> ImageWithObjects:
        """A part of random size and place; boxes are cut with it, and those outside are dropped."""
        height, width = (_between(min(side, self.crop_sides[0]), min(side, self.crop_sides[1])) for side in given.size)
        top, left = _between(0, given.size[0] - height), _between(0, given.size[1] - width)
        return given.apply(lambda part: F.crop(part, top, left, height, width)).without_empty()


class ImageWithLabels(NamedTuple):
    """An image ``(C, H, W)``, uint8, and its labels or numbers of segments ``(H, W)``, of any integer type."""

    image: tv_tensors.Image
    labels: tv_tensors.Mask

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.image.shape[-2:]
        return int(height), int(width)

    def apply(self, transform: Any) -> ImageWithLabels:
        """Transforms the image and its labels; torchvision knows how by the type of each."""
        return ImageWithLabels(transform(self.image), transform(self.labels))

    def resized(self, short: int, longest: int) -> ImageWithLabels:
        """The shorter side has ``short`` pixels, or less where the longer one would pass ``longest``.

        The image is resized bilinearly without antialiasing, as the official models saw it; labels by nearest neighbor.
        """
        size = fitted_size(self.size, short, longest)
        return self.apply(lambda part: resize(part, size))


def with_labels(image: PIL.Image.Image, labels: Tensor) -> ImageWithLabels:
    """An image with its labels."""
    return ImageWithLabels(F.to_image(image), tv_tensors.Mask(labels))


@dataclass(frozen=True, kw_only=True)
class SemanticAugmentation:
    """How a training image is varied; the defaults are those of the official ADE20K training.

    Large-scale jitter, as of Mask2Former on COCO, is ``scale: [0.1, 2.0]``, ``max_class_share: 1.0`` and
    ``data.image_size`` and ``data.max_size`` equal to ``crop``: the image then fits a square of random size.

    Args:
        scale: least and most of a factor to the size of evaluation, ``data.image_size`` and ``data.max_size``.
        crop: height and width in pixels of the part that is cropped; smaller images are padded to it.
        max_class_share: one class must have a smaller share than this of a crop's labeled pixels, or another is
            tried; 1 takes the first.
        flip: probability of a left-right flip.
        flip_vertical: probability of an upside-down flip, where up and down mean nothing (microscopy, aerial images).
        photometric: distort brightness, contrast, saturation and hue, each in half of the images.
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

    def __call__(self, given: ImageWithLabels, short: int, longest: int) -> ImageWithLabels:
        """Varies an image; the randomness is torch's own. The result is not larger than ``crop``, but may be smaller.

        Args:
            given: as on disk.
            short: pixels of the short side in evaluation.
            longest: most pixels of the long side in evaluation.
        """
        factor = _uniform(*self.scale)
        given = given.resized(max(int(short * factor), 1), max(int(longest * factor), 1))
        given = self._crop(given)
        if _chance(self.flip):
            given = given.apply(F.horizontal_flip)
        if self.flip_vertical and _chance(self.flip_vertical):
            given = given.apply(F.vertical_flip)
        return given._replace(image=distort(given.image)) if self.photometric else given

    def _crop(self, given: ImageWithLabels) -> ImageWithLabels:
        height, width = (min(side, most) for side, most in zip(given.size, self.crop, strict=True))
        for _ in range(MOST_CROPS if self.max_class_share < 1 else 1):
            top, left = _between(0, given.size[0] - height), _between(0, given.size[1] - width)
            if _largest_share(given.labels[top : top + height, left : left + width]) < self.max_class_share:
                break
        return given.apply(lambda part: F.crop(part, top, left, height, width))


@dataclass(frozen=True, kw_only=True)
class PanopticAugmentation:
    """How a training image is varied; the defaults are those of Mask2Former's training on COCO.

    Args:
        crop: side in pixels of the square that the network sees; smaller images are padded to it.
        scale: the image is resized to fit that square times a factor between these, and then cropped.
        flip: probability of a left-right flip.
        flip_vertical: probability of an upside-down flip, where up and down mean nothing (microscopy, aerial images).
        photometric: distort brightness, contrast, saturation and hue, each in half of the images.
    """

    crop: int = 1024
    scale: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5
    flip_vertical: float = 0.0
    photometric: bool = False

    def __post_init__(self) -> None:
        if self.crop < 1:
            raise ConfigError(f"augmentation.crop={self.crop} must be a number of pixels")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augmentation.scale={self.scale} must be two rising factors")
        for option in ("flip", "flip_vertical"):
            if not 0 <= getattr(self, option) <= 1:
                raise ConfigError(f"augmentation.{option}={getattr(self, option)} must be a probability, 0 to 1")

    def __call__(self, given: ImageWithLabels) -> ImageWithLabels:
        """Varies an image; the randomness is torch's own. The result is not larger than the crop."""
        square = (self.crop, self.crop)
        # Antialiased, unlike in evaluation: images shrink up to tenfold. So it is in the original.
        jitter = v2.Compose(
            [
                v2.ScaleJitter(square, self.scale, antialias=True),
                v2.RandomHorizontalFlip(self.flip),
                v2.RandomVerticalFlip(self.flip_vertical),
            ]
        )
        image, labels = jitter(given.image, given.labels)
        size = [min(side, self.crop) for side in image.shape[-2:]]
        corner = [int(torch.randint(0, most - side + 1, ())) for most, side in zip(image.shape[-2:], size, strict=True)]
        image, labels = (F.crop(part, *corner, *size) for part in (image, labels))
        return ImageWithLabels(distort(image) if self.photometric else image, labels)


def distort(image: tv_tensors.Image) -> tv_tensors.Image:
    """Brightness, contrast, saturation and hue at random, in mmseg's order and strengths.

    Args:
        image: ``(3, H, W)``, uint8.
    """
    colors = image.as_subclass(Tensor).float() / 255
    if _chance(0.5):
        colors = (colors + _uniform(-32 / 255, 32 / 255)).clamp(0, 1)
    contrast_last = _chance(0.5)
    if not contrast_last and _chance(0.5):
        colors = (colors * _uniform(0.5, 1.5)).clamp(0, 1)
    if _chance(0.5):
        colors = _saturate(colors, _uniform(0.5, 1.5))
    if _chance(0.5):
        colors = F.adjust_hue(colors, _uniform(-0.1, 0.1))
    if contrast_last and _chance(0.5):
        colors = (colors * _uniform(0.5, 1.5)).clamp(0, 1)
    return tv_tensors.Image((255 * colors).round().byte())


def _saturate(colors_3HW: Tensor, factor: float) -> Tensor:
    """Saturation in HSV times a factor, at most 1: how far below the brightest color the others are."""
    brightest = colors_3HW.amax(0)
    below = brightest - colors_3HW
    most = brightest / below.amax(0).clamp(min=1e-6)  # the factor that makes the darkest color 0
    return brightest - below * most.clamp(max=factor)


def _largest_share(labels: Tensor) -> float:
    """The share of the most frequent class among labeled pixels; 1 where there is only one, or none."""
    counts = torch.bincount(labels.flatten())
    counts[IGNORED:] = 0
    return 1.0 if not counts.any() else float(counts.max() / counts.sum())


def _chance(probability: float) -> bool:
    return bool(torch.rand(()).item() < probability)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _between(low: int, high: int) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, ()))


def _one_of(values: Sequence[int]) -> int:
    return values[_between(0, len(values) - 1)]
