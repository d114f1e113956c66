"""What travels with weights: how images are prepared, what the classes are called, where the weights came from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a network's input: ``data.preprocess`` does it.

    Without ``max_size``, as a classifier's: the short side is resized with antialiasing and the center is cropped. With
    it, as those of detectors and segmenters: the whole image is resized bilinearly without antialiasing, so that its
    short side has ``image_size`` pixels unless the long one would have more than ``max_size``.

    Args:
        image_size: side in pixels of the square crop, or of the short side.
        crop_pct: crop over short side, in (0, 1]; 0.875 is the official code's 224 of 256.
        interpolation: before a crop, ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
        mean: per channel, of values in [0, 1]; as many as the image has channels.
        std: per channel.
        max_size: most pixels of the long side of an image that is seen whole.
    """

    image_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    max_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What must travel with weights for them to be of use: stored in our files, shown by ``focalnet models``.

    Args:
        name: ``architecture.training``, e.g. ``"focalnet_tiny_lrf.ms_in1k"``.
        class_names: by class index; empty where unknown.
        preprocessing: what the network was trained with.
        licence: SPDX name where known.
        source: where the weights came from.
        metrics: measured or published figures, e.g. ``{"imagenet1k_top1": 82.3}``, percent.
    """

    name: str
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing = Preprocessing()
    licence: str | None = None
    source: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
