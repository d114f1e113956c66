"""The class of each pixel of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focalnet.results.names import class_name
from focalnet.samples import IGNORED

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class SemanticMap:
    """The class of each pixel of the original image.

    Args:
        labels: ``(height, width)``, int64, class indices from 0; ``IGNORED`` where there is none, except with more
            than 255 classes, where that is one of them.
        names: of all classes, by index; empty where unknown.
        image: the picture itself, if kept.
        path: the file it came from, if any.
    """

    labels: Tensor
    names: tuple[str, ...] = ()
    image: Image | None = field(default=None, repr=False, compare=False)
    path: str | None = None

    def shares(self) -> dict[int, float]:
        """The classes that are there, and their share of all pixels, 0 to 1; the largest first."""
        counts = self.labels.flatten().bincount()
        if len(self.names) <= IGNORED:
            counts[IGNORED : IGNORED + 1] = 0
        largest = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
        return {int(label): int(counts[label]) / self.labels.numel() for label in largest}

    def name(self, label: int) -> str:
        """Of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``focalnet predict`` writes them to JSON: each class and its share of the pixels."""
        classes = [{"label": i, "name": self.name(i), "share": share} for i, share in self.shares().items()]
        height, width = self.labels.shape
        return {"path": self.path, "height": height, "width": width, "classes": classes}

    def save(self, path: str | Path) -> Path:
        """Writes the picture with its classes laid over it and a legend; the suffix chooses the format."""
        from focalnet.visualize import draw_semantic, save_image  # drawing is optional for a noun

        return save_image(draw_semantic(self), path)
