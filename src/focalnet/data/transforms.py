"""Augmentation of images for classification.

Everything is timm's or torchvision's; here are only the settings. The paper's are the defaults of ``Augmentation``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL.Image import Image
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform
from torchvision import transforms

from focalnet.card import Preprocessing
from focalnet.data.preprocess import Transform, short_side
from focalnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training picture is varied; the defaults are the paper's for ImageNet (its appendix, table of recipes).

    Args:
        crop: ``"resized"``: a random part, resized; ``"padded"``: resized whole, padded, a random crop of
            that (small pictures); ``"center"``: no variation, as in evaluation.
        scale: of ``"resized"``, the part's area over the picture's: least and most.
        ratio: of ``"resized"``, the part's width over its height: least and most.
        padding: of ``"padded"``, pixels on each side (black).
        flip: probability of a left-right flip; 0 where left and right differ in meaning (digits, text).
        policy: timm's name of a policy (``"rand-m9-mstd0.5-inc1"``: RandAugment), or ``"trivial"`` for
            TrivialAugment, or none.
        color_jitter: strength of brightness, contrast and saturation jitter. As in the official training,
            a policy takes its place: it acts only where ``policy`` is none.
        erase_prob: probability of erasing a random rectangle, after normalisation.
        erase_mode: filled with noise (``"pixel"``), one random colour (``"rand"``) or the mean colour
            (``"const"``, known as cutout).
    """

    crop: Literal["resized", "padded", "center"] = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    flip: float = 0.5
    policy: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    erase_prob: float = 0.25
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"

    def __post_init__(self) -> None:
        for option in ("flip", "erase_prob"):
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
        size, mode = preprocessing.image_size, transforms.InterpolationMode(preprocessing.interpolation)
        trivial = self.policy == "trivial"
        try:
            crop, vary, finish = create_transform(
                size,
                is_training=True,
                separate=True,
                scale=self.scale,
                ratio=self.ratio,
                hflip=self.flip,
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
        if self.crop == "padded":
            crop.transforms = [transforms.Resize(size, mode), transforms.RandomCrop(size, self.padding), *flip]
        elif self.crop == "center":
            side = short_side(preprocessing)
            crop.transforms = [transforms.Resize(side, mode), transforms.CenterCrop(size), *flip]
        if trivial:
            vary.transforms = [transforms.TrivialAugmentWide(interpolation=mode)]
        elif self.policy:
            _allow_zero_bits(vary.transforms[0])
        augment: Transform = transforms.Compose(crop.transforms + vary.transforms + finish.transforms)
        return augment


def _allow_zero_bits(policy: Any) -> None:
    # timm's Posterize keeps 0 bits at full strength, a black picture; recent Pillow refuses that number.
    operations = policy.ops if hasattr(policy, "ops") else [op for stage in policy.policy for op in stage]
    for operation in operations:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image, bits: int, **options: Any) -> Image:
    black: Image = auto_augment.posterize(image, max(bits, 1), **options)  # type: ignore[no-untyped-call]
    return black.point(lambda value: 0) if bits < 1 else black
