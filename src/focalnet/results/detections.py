"""The objects in an image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focalnet.results.names import class_name

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """The objects in an image, best first, in pixels of the original image.

    Args:
        boxes: ``(N, 4)``, x1 y1 x2 y2.
        scores: ``(N,)``, 0 to 1.
        labels: ``(N,)``, class indices from 0.
        names: of all classes, by index; empty where unknown.
        masks: ``(N, height, width)``, bool; None for a model that finds boxes only.
        size: height and width of the original image.
        image: the picture itself, if kept.
        path: the file it came from, if any.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()
    masks: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    image: Image | None = field(default=None, repr=False, compare=False)
    path: str | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, min_score: float) -> Detections:
        """Only the objects with at least that score."""
        kept = self.scores >= min_score
        masks = None if self.masks is None else self.masks[kept]
        return replace(self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], masks=masks)

    def name(self, label: int) -> str:
        """Of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``focalnet predict`` writes them to JSON; masks are in the COCO result file beside it."""
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        objects = [{"label": i, "name": self.name(i), "score": score, "box": box} for i, score, box in rows]
        return {"path": self.path, "height": self.size[0], "width": self.size[1], "objects": objects}

    def save(self, path: str | Path) -> Path:
        """Writes the picture with boxes, masks, names and scores drawn on it; the suffix chooses the format."""
        from focalnet.visualize import draw_detections, save_image  # drawing is optional for a noun

        return save_image(draw_detections(self), path)
