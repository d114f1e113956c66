"""Pictures with the segment of each pixel, varied as Mask2Former's training does: large-scale jitter.

A view's labels are here the numbers of segments, 0 for none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from focalnet.data.semantic_transforms import SemanticView, distort
from focalnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PanopticAugmentation:
    """How a training picture is varied; the defaults are those of Mask2Former's training on COCO.

    Args:
        crop: side in pixels of the square that the network sees; smaller pictures are padded to it.
        scale: the picture is resized to fit that square times a factor between these, and then cut out.
        flip: probability of a left-right flip.
        flip_vertical: probability of an upside-down flip, where up and down mean nothing (microscopy, aerial pictures).
        photometric: distort brightness, contrast, saturation and hue, each in half of the pictures.
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

    def __call__(self, given: SemanticView) -> SemanticView:
        """Varies a picture; the randomness is torch's own. The result is not larger than the crop."""
        square = (self.crop, self.crop)
        # Antialiased, unlike in evaluation: pictures shrink up to tenfold. So it is in the original.
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
        return SemanticView(distort(image) if self.photometric else image, labels)
