"""The classes of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Classification:
    """What an image shows, best class first.

    Args:
        labels: class indices.
        scores: softmax probabilities, in [0, 1].
        names: class names.
        path: the file it was read from, if any.
        image: the picture itself, for drawing; not part of equality.
        logits: ``(N,)`` of all classes, by index; not part of equality, nor of ``to_dict``.
    """

    labels: tuple[int, ...]
    scores: tuple[float, ...]
    names: tuple[str, ...]
    path: str | None = None
    image: Image | None = field(default=None, repr=False, compare=False)
    logits: Tensor | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``focalnet predict`` writes them to JSON."""
        ranked = zip(self.labels, self.names, self.scores, strict=True)
        return {"path": self.path, "top": [{"label": i, "name": n, "score": s} for i, n, s in ranked]}

    def save(self, path: str | Path) -> Path:
        """Writes the picture with its best classes and scores drawn on it; the suffix chooses the format."""
        from focalnet.visualize import draw_classification, save_image  # drawing is optional for a noun

        return save_image(draw_classification(self), path)
