"""``focalnet.data.preprocess`` by NumPy and Pillow: from an image to the array that an exported network takes.

Classifiers' inputs are those of ``data.preprocess`` but for rounding, since both resize with Pillow. Other images are
resized in floating point and rounded, where PyTorch's integer arithmetic may round a value of a pixel (0 to 255) up or
down.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.card import Preprocessing
from focalnet.errors import InputError

Array = npt.NDArray[np.float32]

_THINNEST = 32  # long side over short side of an image that is enlarged whole
_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Array:
    """The network's input ``(3, H, W)`` for an RGB image, not padded.

    Raises:
        InputError: the network takes images of another number of channels.
    """
    if len(preprocessing.mean) != 3:
        raise InputError(f"the network takes {len(preprocessing.mean)} channels, and images are RGB")
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    if preprocessing.max_size is None:
        pixels = _channels_first(_center(image, preprocessing)).astype(np.float32) / np.float32(255)
        normalized: Array = (pixels - mean) / std
        return normalized
    size = fitted_size((image.height, image.width), preprocessing.short_side, preprocessing.max_size)
    normalized = (resize(_channels_first(image), size) - 255 * mean) / (255 * std)
    return normalized


def fitted_size(size: tuple[int, int], short: int, longest: int) -> tuple[int, int]:
    """Height and width with the short side as given, unless the long one is too long; as ``data.preprocess`` has it."""
    scale = min(short / min(size), longest / max(size))
    height, width = (max(int(side * scale + 0.5), 1) for side in size)
    return height, width


def resize(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> Array:
    """Resizes an image ``(C, h, w)`` bilinearly without antialiasing; values are whole, 0 to 255."""
    values = pixels.astype(np.float32)
    for axis, side in ((1, size[0]), (2, size[1])):
        before = values.shape[axis]
        place = np.clip((np.arange(side) + 0.5) * (before / side) - 0.5, 0, before - 1)
        first = np.floor(place).astype(np.int64)
        share = (place - first).astype(np.float32)
        share = share[:, None] if axis == 1 else share
        low, high = values.take(first, axis), values.take(np.minimum(first + 1, before - 1), axis)
        values = low + (high - low) * share
    rounded: Array = np.floor(values + np.float32(0.5))
    return rounded


def pad(images: list[Array], divisor: int) -> Array:
    """Images ``(C, h, w)`` as one array ``(B, C, H, W)``, zeros right and below, sides multiples of a divisor."""
    height, width = (math.ceil(max(x.shape[axis] for x in images) / divisor) * divisor for axis in (1, 2))
    batch = np.zeros((len(images), images[0].shape[0], height, width), np.float32)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch


def _center(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The image, resized to cover the crop (or, squashed, to its shape), and cropped."""
    crop, squashed = preprocessing.crop, preprocessing.fit == "squash"
    thinnest = _THINNEST * max(crop) / min(crop)
    longest = math.ceil(thinnest * min(image.size))
    if max(image.size) > longest and not squashed:
        image = _cropped(image, (min(image.height, longest), min(image.width, longest)))
    least = [math.floor(side / preprocessing.crop_pct) for side in crop]
    size = image.height, image.width
    if squashed:
        height, width = least
    elif least[0] == least[1]:
        height, width = (int(least[0] * side / min(size)) for side in size)
    else:
        scale = max(wanted / side for wanted, side in zip(least, size, strict=True))
        height, width = (max(round(scale * side), wanted) for side, wanted in zip(size, least, strict=True))
    return _cropped(image.resize((width, height), _RESAMPLING[preprocessing.interpolation]), crop)


def _cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of the image, rounded as torchvision does."""
    top, left = round((image.height - size[0]) / 2), round((image.width - size[1]) / 2)
    return image.crop((left, top, left + size[1], top + size[0]))


def _channels_first(image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = np.asarray(image).transpose(2, 0, 1)
    return pixels
