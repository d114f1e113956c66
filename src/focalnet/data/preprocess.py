"""From an image to the tensor that a network sees, wherever it comes from.

Validation, prediction, tiles and explanations call ``preprocess``; training shares its parts. There are two ways, those
of the published models, and ``Preprocessing.max_size`` says which:

* without it, a classifier's: the short side is resized to ``image_size / crop_pct`` with antialiasing, the center is
  cropped, and values in [0, 1] are normalized; for a crop that is no square, the image is resized to cover it; with
  ``fit="squash"``, it is resized to the shape of the crop instead;
* with it, that of detectors and segmenters: the whole image is resized to fit ``image_size`` and ``max_size``,
  bilinearly without antialiasing, sizes are rounded as mmdet does, and values are normalized in their own range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from focalnet.card import Preprocessing
from focalnet.errors import InputError
from focalnet.samples import Size

#: An image to ``(C, H, W)``, float32, normalized.
Transform: TypeAlias = Callable[[Image.Image], Tensor]
T = TypeVar("T", bound=Tensor)
THINNEST = 32  # long side over short side of an image that is enlarged whole


def _torchvision() -> Any:
    """Functions for tensors; importing them takes two seconds, and opened images do not need them."""
    from torchvision.transforms.v2 import functional

    return functional


def preprocess(image: Image.Image | Tensor, preprocessing: Preprocessing, size: Size | None = None) -> Tensor:
    """The network's input ``(C, H, W)``, float32.

    Args:
        image: or ``(C, H, W)``: uint8; other integers, of which the largest of their type is white; or floating point,
            where 1 is. ``mean`` and ``std`` say how many channels it has.
        preprocessing: of the model's card.
        size: height and width to resize to, with nothing cropped; default: as ``preprocessing`` says.

    Raises:
        InputError: the image has another number of channels.
    """
    if isinstance(image, Tensor) or image.mode not in ("L", "RGB"):
        image = to_tensor(image)
    if size is None and preprocessing.max_size is None:
        image = _center(image, preprocessing)
    pixels = to_tensor(image)
    if size is None and preprocessing.max_size is not None:
        size = fitted_size((pixels.shape[-2], pixels.shape[-1]), preprocessing.short_side, preprocessing.max_size)
    if size is not None:
        pixels = resize(pixels, size)
    return normalize(pixels, preprocessing)


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """``preprocess`` as a function of the image alone."""
    return partial(preprocess, preprocessing=preprocessing)


def to_tensor(image: Image.Image | Tensor) -> Tensor:
    """``(C, H, W)``: uint8, or floating point where 1 is white."""
    if isinstance(image, Tensor):
        pixels = image
    else:
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)
    if pixels.dtype == torch.uint8 or pixels.is_floating_point():
        return pixels
    return pixels.float() / torch.iinfo(pixels.dtype).max


def covering_size(size: Size, crop: Size, crop_pct: float, fit: str = "crop") -> Size:
    """Height and width of an image that is resized to cover a crop over ``crop_pct``; its center is then cropped.

    Args:
        size: height and width of the image.
        crop: height and width of the crop; of a square one, the short side of the image is that of torchvision's
            ``Resize`` to a number.
        crop_pct: in (0, 1].
        fit: as in ``Preprocessing``.
    """
    least = tuple(math.floor(side / crop_pct) for side in crop)
    if fit == "squash":
        height, width = least
    elif least[0] == least[1]:
        height, width = (int(least[0] * side / min(size)) for side in size)
    else:
        scale = max(wanted / side for wanted, side in zip(least, size, strict=True))
        height, width = (max(round(scale * side), wanted) for side, wanted in zip(size, least, strict=True))
    return height, width


def middle(image: Any, thinnest: float = THINNEST) -> Any:
    """The middle of an image that is more than ``thinnest`` times as long as wide; any other image as it is.

    Resized by its short side, a strip of 1 x 30000 pixels, which is a file of 138 bytes, would take gigabytes.

    Args:
        image: of Pillow, or ``(C, H, W)``.
        thinnest: long side over short side.
    """
    height, width = _size(image)
    longest = math.ceil(thinnest * min(height, width))
    if max(height, width) <= longest:
        return image
    return _center_crop(image, (min(height, longest), min(width, longest)))


def cover(image: Any, crop: Size, crop_pct: float, interpolation: str, fit: str = "crop") -> Any:
    """Resizes an image with antialiasing, so that it covers a crop over ``crop_pct``; see ``covering_size``."""
    if fit == "crop":
        image = middle(image, THINNEST * max(crop) / min(crop))
    height, width = covering_size(_size(image), crop, crop_pct, fit)
    if isinstance(image, Image.Image):
        same = image.size == (width, height)
        return image if same else image.resize((width, height), Image.Resampling[interpolation.upper()])
    from torchvision.transforms.v2 import InterpolationMode

    mode = InterpolationMode(interpolation)
    return _torchvision().resize(image, [height, width], interpolation=mode, antialias=True)


def _center(image: Any, preprocessing: Preprocessing) -> Any:
    how = preprocessing
    resized = cover(image, how.crop, how.crop_pct, how.interpolation, how.fit)
    return _center_crop(resized, preprocessing.crop)


def _size(image: Any) -> Size:
    """Height and width."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    height, width = _torchvision().get_size(image)
    return height, width


def _center_crop(image: Any, size: Size) -> Any:
    """The center of an image that is at least as large."""
    if not isinstance(image, Image.Image):
        return _torchvision().center_crop(image, list(size))
    top, left = (round((side - crop) / 2) for side, crop in zip(_size(image), size, strict=True))
    return image.crop((left, top, left + size[1], top + size[0]))


def fitted_size(size: Size, short: int, longest: int) -> Size:
    """Height and width with the short side as given, unless the long one is too long; rounded as mmdet does.

    Args:
        size: height and width of the image.
        short: pixels of the short side.
        longest: most pixels of the long side.
    """
    scale = min(short / min(size), longest / max(size))
    height, width = (max(int(side * scale + 0.5), 1) for side in size)
    return height, width


def resize(image: T, size: Size) -> T:
    """Resizes an image bilinearly without antialiasing, as the official models saw them.

    Args:
        image: ``(C, H, W)``; or masks or boxes of ``torchvision.tv_tensors``, resized as becomes them.
        size: height and width.
    """
    if type(image) is Tensor and _interpolated_as_it_is(image):  # what torchvision does, without its import
        if tuple(image.shape[1:]) == tuple(size):
            return image
        return F.interpolate(image[None], list(size), mode="bilinear", align_corners=False)[0]  # type: ignore[return-value]
    resized: T = _torchvision().resize(image, list(size), antialias=False)
    return resized


def _interpolated_as_it_is(image: Tensor) -> bool:
    """Whether torchvision resizes it in its own type; other processors and types go through float32 and back."""
    if image.dtype == torch.uint8:
        return image.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return image.dtype in (torch.float32, torch.float64)


def normalize(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """An image ``(C, H, W)``, uint8 or floating point, as float32 with the preprocessing's mean and deviation.

    Raises:
        InputError: it has another number of channels than the preprocessing.
    """
    mean, std = preprocessing.mean, preprocessing.std
    if not image.shape[0] == len(mean) == len(std):
        raise InputError(
            f"an image has {image.shape[0]} channels, and the card's preprocessing is for {len(mean)} (mean) and "
            f"{len(std)} (std)"
        )
    pixels = image.as_subclass(Tensor).float()
    if image.dtype == torch.uint8:
        if preprocessing.max_size is None:
            pixels = pixels / 255
        else:  # which is the same but for rounding
            mean, std = (tuple(255 * value for value in values) for values in (mean, std))
    return (pixels - pixels.new_tensor(mean).view(-1, 1, 1)) / pixels.new_tensor(std).view(-1, 1, 1)


def pad(images: Sequence[Tensor], divisor: int) -> Tensor:
    """Images ``(C, h, w)`` of any sizes as ``(B, C, H, W)``, zeros right and below, sides multiples of a divisor."""
    height, width = (math.ceil(max(image.shape[axis] for image in images) / divisor) * divisor for axis in (-2, -1))
    batch = images[0].new_zeros((len(images), images[0].shape[0], height, width))
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[-2], : image.shape[-1]] = image
    return batch
