"""The card stored with weights: preprocessing, class names, license, source and metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from focalnet.errors import ConfigError

LARGEST = 1 << 14  # pixels of a side that an image is resized to
IGNORED = 255  # label of pixels that belong to no class; they are neither trained on nor evaluated
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
FITS = ("crop", "squash")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How ``data.preprocess`` turns an image into a network's input.

    Without ``max_size``, as for classifiers, the short side is resized with antialiasing and the center is cropped.
    With ``max_size``, as for detectors and segmenters, the whole image is resized bilinearly without antialiasing, so
    that its short side has ``image_size`` pixels, or less if the long side would exceed ``max_size``.

    Args:
        image_size: side in pixels of the square crop, or its height and width; with ``max_size``, of the short side.
        crop_pct: side of the crop divided by the short side, in (0, 1]; 0.875 is the official code's 224 of 256.
        interpolation: of resizing before a crop, ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
        mean: for each channel, of values in [0, 1].
        std: for each channel.
        max_size: largest long side in pixels of an image that is not cropped.
        fit: ``"crop"`` keeps the aspect ratio, and crops what is over; ``"squash"`` resizes height and width each to
            that of the crop over ``crop_pct``, as some checkpoints of other libraries do (timm's ``squash``).

    Raises:
        ConfigError: a value has the wrong type or is invalid.
    """

    image_size: int | tuple[int, int] = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    max_size: int | None = None
    fit: str = "crop"

    def __post_init__(self) -> None:
        for name in ("image_size", "max_size"):
            value = getattr(self, name)
            rectangle = name == "image_size" and isinstance(value, tuple) and len(value) == 2 and self.max_size is None
            sides = value if rectangle else (value,)
            if not all(_is_whole(side) and side >= 1 for side in sides) and not (name == "max_size" and value is None):
                pair = ", or two where there is no max_size" if isinstance(value, tuple) else ""
                raise ConfigError(
                    f"preprocessing: {name}={_short(value)} must be a whole number of pixels, 1 or more{pair}"
                )
        if not (_is_number(self.crop_pct) and 0 < self.crop_pct <= 1):
            raise ConfigError(f"preprocessing: crop_pct={_short(self.crop_pct)} must be above 0 and at most 1")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ConfigError(f"preprocessing: interpolation={_short(self.interpolation)} must be one of {known}")
        if self.fit not in FITS or (self.fit != "crop" and self.max_size is not None):
            where = ' where there is a max_size, "crop"' if self.fit in FITS else f" one of {', '.join(FITS)}"
            raise ConfigError(f"preprocessing: fit={_short(self.fit)} must be{where}")
        if max(self.crop) > LARGEST * self.crop_pct or (self.max_size or 0) > LARGEST:
            raise ConfigError(
                f"preprocessing: image_size={self.image_size} with crop_pct={self.crop_pct} and max_size="
                f"{self.max_size} resize images to more than {LARGEST} pixels a side"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not (isinstance(values, tuple) and values and all(map(_is_number, values))):
                raise ConfigError(f"preprocessing: {name}={_short(values)} must be a finite number for each channel")
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ConfigError(
                f"preprocessing: std={self.std} must be above 0, and have as many values as mean={self.mean}"
            )
        if max(self.mean) > 1 or max(self.std) > 1:
            raise ConfigError(
                f"preprocessing: mean={self.mean} and std={self.std} are for values from 0 to 255, and images have "
                "values from 0 to 1: divide them by 255"
            )

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width in pixels of the crop."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def short_side(self) -> int:
        """Pixels of the short side of an image that is seen whole."""
        return min(self.crop)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Metadata of weights, stored in our files and shown by ``focalnet models``.

    Args:
        name: ``architecture.training``, e.g. ``"focalnet_tiny_lrf.ms_in1k"``.
        class_names: by class index; empty if unknown.
        category_ids: by class index, the ids of the classes in COCO annotation files; empty if there are none or they
            are unknown.
        preprocessing: of the images that the network was trained on.
        licence: SPDX license name, if known.
        source: origin of the weights.
        metrics: measured or published figures, e.g. ``{"imagenet1k_top1": 82.3}``, percent.

    Raises:
        ConfigError: a value has the wrong type.
    """

    name: str
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int | str, ...] = ()
    preprocessing: Preprocessing = Preprocessing()
    licence: str | None = None
    source: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "licence", "source"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name != "name" and value is None):
                raise ConfigError(f"model card: {name}={_short(value)} must be a string")
        names = self.class_names
        if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise ConfigError(f"model card: class_names must be a tuple of strings, not {_short(names)}")
        ids = self.category_ids
        if not (isinstance(ids, tuple) and all(map(_is_id, ids)) and len(set(ids)) == len(ids)):
            raise ConfigError(f"model card: category_ids must be a tuple of different ids, not {_short(ids)}")
        if ids and names and len(ids) != len(names):
            raise ConfigError(f"model card: there are {len(ids)} category_ids for {len(names)} class_names")
        if not isinstance(self.preprocessing, Preprocessing):
            raise ConfigError(f"model card: preprocessing must be a Preprocessing, not {_short(self.preprocessing)}")
        figures = self.metrics
        if not (isinstance(figures, dict) and all(isinstance(key, str) for key in figures)) or not all(
            isinstance(value, Real) and not isinstance(value, bool) for value in figures.values()
        ):
            raise ConfigError(f"model card: metrics must be numbers by name, not {_short(figures)}")
