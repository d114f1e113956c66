"""What travels with weights: how images are prepared, what the classes are called, where the weights came from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a network's input: resize the short side, crop the centre, normalise.

    Detectors see the whole image: with ``max_size``, nothing is cropped, and ``image_size`` is the short side.

    Args:
        image_size: side in pixels of the square crop.
        crop_pct: crop over short side, in (0, 1]; 0.875 is the official code's 224 of 256.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
        mean: per channel, of values in [0, 1].
        std: per channel.
        max_size: of a detector, the most pixels of the long side; the short one gives way.
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
