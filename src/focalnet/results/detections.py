"""The objects in an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from focalnet import visualize
from focalnet.errors import require
from focalnet.results.base import Result, as_array, class_name

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Detections(Result):
    """The objects in an image, best first, in pixels of the original image.

    Args:
        boxes: ``(N, 4)``, x1 y1 x2 y2.
        scores: ``(N,)``, 0 to 1.
        labels: ``(N,)``, class indices from 0.
        names: of all classes, by index; empty where unknown.
        masks: ``(N, height, width)``, bool; None for a model that predicts boxes only.
        size: height and width of the original image.
        image: the image itself, if it was kept; not part of equality.
        path: the file that the image was read from, if any.
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
        """Returns only the objects with at least that score."""
        kept = self.scores >= min_score
        masks = None if self.masks is None else self.masks[kept]
        return replace(self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], masks=masks)

    def name(self, label: int) -> str:
        """The name of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as ``focalnet predict`` writes them to JSON; masks are in the COCO file beside it."""
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        objects = [{"label": i, "name": self.name(i), "score": score, "box": box} for i, score, box in rows]
        return {"path": self.path, "height": self.size[0], "width": self.size[1], "objects": objects}

    def summary(self) -> list[str]:
        """Returns one line: how many objects there are of each class."""
        counts = Counter(self.name(label) for label in self.labels.tolist())
        return [", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no objects"]

    def draw(self, *, scores: bool = True, as_frame: bool = False) -> Image:
        """Draws boxes, masks, names and scores over the image, one color a class, the best objects on top.

        In a crowd, names are written only where they are no wider than their object, and a legend below counts the
        classes.

        Args:
            scores: write them behind the names; true objects have none.
            as_frame: keep the size of the image, and draw no legend: all frames of a video have one size.

        Raises:
            ConfigError: the result has no image.
        """
        names = [self.name(label) for label in self.labels.tolist()]
        written = self.scores if scores else None
        masks = None if self.masks is None else as_array(self.masks)
        return visualize.draw_boxes(self._canvas(), self.boxes, self.labels, names, written, masks, as_frame=as_frame)

    def to_coco(self, image_id: Any, category_ids: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns the objects in COCO's result form, which its server and pycocotools take.

        Args:
            image_id: of the image, in the annotation file.
            category_ids: by label.

        Raises:
            MissingDependency: masks need pycocotools.
        """
        segmentations: list[dict[str, Any]] = []
        if self.masks is not None:
            coder = require("pycocotools.mask", "dense")
            bitmaps_HWN = as_array(self.masks).astype(np.uint8).transpose(1, 2, 0)
            encoded = coder.encode(np.asfortranarray(bitmaps_HWN)) if len(self) else []
            segmentations = [{"segmentation": {**code, "counts": code["counts"].decode()}} for code in encoded]
        boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in self.boxes.tolist()]
        rows = zip(self.labels.tolist(), boxes, self.scores.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": box,
                "score": score,
                **(segmentations[i] if segmentations else {}),
            }
            for i, (label, box, score) in enumerate(rows)
        ]

    def coco_entries(self, image_id: Any, category_ids: Sequence[Any], name: str) -> dict[str, list[dict[str, Any]]]:
        """Returns the list of ``detections.json``."""
        return {"detections": self.to_coco(image_id, category_ids)}
