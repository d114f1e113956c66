"""The nouns: what goes into a network and what comes out, in pixels of the original image.

``Sample`` and ``Batch`` are plain dicts so that they pass through any loader; results are frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Sample(TypedDict):
    """One labelled image of a data set: ``image`` is ``(C, H, W)``, ``path`` says where it came from."""

    image: Tensor
    label: int
    path: str


class Batch(TypedDict):
    """Collated samples: ``images`` ``(B, C, H, W)``; ``labels`` ``(B,)``, or ``(B, N)`` when mixed."""

    images: Tensor
    labels: Tensor
    paths: list[str]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a network's input: resize the short side, crop the centre, normalise.

    Args:
        image_size: side in pixels of the square crop.
        crop_pct: crop over short side, in (0, 1]; 0.875 is the official code's 224 of 256.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
        mean: per channel, of values in [0, 1].
        std: per channel.
    """

    image_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


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


@dataclass(frozen=True)
class Classification:
    """What an image shows, best class first.

    Args:
        labels: class indices.
        scores: softmax probabilities, in [0, 1].
        names: class names.
        path: the file it was read from, if any.
        image: the picture itself, for drawing; not part of equality.
    """

    labels: tuple[int, ...]
    scores: tuple[float, ...]
    names: tuple[str, ...]
    path: str | None = None
    image: Image | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``focalnet predict`` writes them to JSON."""
        ranked = zip(self.labels, self.names, self.scores, strict=True)
        return {"path": self.path, "top": [{"label": i, "name": n, "score": s} for i, n, s in ranked]}

    def save(self, path: str | Path) -> Path:
        """Writes the picture with its best classes and scores drawn on it; the suffix chooses the format."""
        from focalnet.visualize import draw_classification, save_image  # drawing is optional for a noun

        return save_image(draw_classification(self), path)
