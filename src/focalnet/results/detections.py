"""The objects in an image."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from focalnet import visualize
from focalnet.errors import require
from focalnet.results.base import Result, as_array, briefly, class_name, run_lengths

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from focalnet.visualize.boxes import Box


class DetectedObject(NamedTuple):
    """One object: its class, score, box x1 y1 x2 y2 in pixels, and mask ``(height, width)``, bool, if it has one."""

    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Detections(Result):
    """The objects in an image, best first, in pixels of the original image.

    It is a sequence of its objects: ``result[0].name``; ``result[:3]`` and ``result[result.labels == 1]`` are the
    ``Detections`` of some.

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

    table_columns = ("label", "name", "score", "x1", "y1", "x2", "y2")

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[DetectedObject]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> DetectedObject: ...
    @overload
    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Detections: ...

    def __getitem__(self, index: Any) -> DetectedObject | Detections:
        """One object; or those of a slice, of indices, or of a mask ``(N,)``, bool."""
        if isinstance(index, slice):
            index = list(range(*index.indices(len(self))))  # PyTorch takes no negative steps
        elif getattr(index, "ndim", 0) == 0 and not isinstance(index, Sequence):  # an integer of any library
            index = operator.index(index)  # or TypeError
            if not -len(self) <= index < len(self):
                raise IndexError(f"object {index} of {len(self)}")
            label = int(self.labels[index])
            x1, y1, x2, y2 = self.boxes[index].tolist()
            mask = None if self.masks is None else self.masks[index]
            return DetectedObject(label, self.name(label), float(self.scores[index]), (x1, y1, x2, y2), mask)
        masks = None if self.masks is None else self.masks[index]
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index], masks=masks)

    def above(self, min_score: float) -> Detections:
        """Returns only the objects with at least that score."""
        return self[self.scores >= min_score]

    def _brief(self) -> str:
        counts = Counter(self.name(label) for label in self.labels.tolist())
        found = briefly([f"{count} {name}" for name, count in counts.most_common()]) or "no objects"
        return f"{found}; {self.size[1]} x {self.size[0]}"

    def table_rows(self) -> list[dict[str, Any]]:
        """A row for each object: its class, score and box."""
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        sides = self.table_columns[3:]
        return [
            {"label": label, "name": self.name(label), "score": score, **dict(zip(sides, box, strict=True))}
            for label, score, box in rows
        ]

    def to_supervision(self) -> Any:
        """Returns ``supervision.Detections``, with the names as ``data["class_name"]``.

        Raises:
            MissingDependency: supervision is not installed.
        """
        return require("supervision", "supervision").Detections(
            xyxy=as_array(self.boxes).astype(np.float32).reshape(-1, 4),
            mask=None if self.masks is None else as_array(self.masks),
            confidence=as_array(self.scores).astype(np.float32),
            class_id=as_array(self.labels).astype(int),
            data={"class_name": np.array([self.name(label) for label in self.labels.tolist()], dtype=str)},
        )

    def to_torchvision(self) -> dict[str, Any]:
        """Returns boxes, labels, scores and masks as torchvision's transforms and torchmetrics take them.

        Boxes and masks are ``tv_tensors``. Labels count from 0; those of torchvision's own detectors count from 1,
        because 0 is their background.
        """
        tensors = require("torchvision.tv_tensors", "train")
        boxes = tensors.BoundingBoxes(self.boxes, format="XYXY", canvas_size=self.size)
        found = {"boxes": boxes, "labels": self.labels, "scores": self.scores}
        return found if self.masks is None else {**found, "masks": tensors.Mask(self.masks)}

    def to_fiftyone(self) -> Any:
        """Returns ``fiftyone.Detections``; boxes are fractions of the image size, masks are cropped to their box.

        What is outside of the image is cut off.

        Raises:
            MissingDependency: FiftyOne is not installed.
        """
        fiftyone = require("fiftyone", "fiftyone")
        height, width = self.size
        found = []
        for one in self:
            x1, y1, x2, y2 = self._inside(one.box)
            box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
            mask = None
            if one.mask is not None:
                top, left = round(y1), round(x1)
                top, left = min(top, height - 1), min(left, width - 1)
                mask = as_array(one.mask)[top : max(round(y2), top + 1), left : max(round(x2), left + 1)]
            found.append(fiftyone.Detection(label=one.name, bounding_box=box, confidence=one.score, mask=mask))
        return fiftyone.Detections(detections=found)

    def to_label_studio(
        self, model: str = "focalnet", *, from_name: str = "label", to_name: str = "image"
    ) -> dict[str, Any]:
        """Returns a prediction for Label Studio: the boxes within the image as rectangles, without masks.

        Args:
            model: its version, as Label Studio shows it.
            from_name: the name of ``<RectangleLabels>`` in the labeling configuration.
            to_name: the name of ``<Image>`` there.
        """
        height, width = self.size
        regions = []
        for number, one in enumerate(self, start=1):
            x1, y1, x2, y2 = self._inside(one.box)
            place = {
                "x": 100 * x1 / width,
                "y": 100 * y1 / height,
                "width": 100 * (x2 - x1) / width,
                "height": 100 * (y2 - y1) / height,
                "rotation": 0,
            }
            regions.append(
                {
                    "id": str(number),
                    "from_name": from_name,
                    "to_name": to_name,
                    "type": "rectanglelabels",
                    "original_width": width,
                    "original_height": height,
                    "score": one.score,
                    "value": {**place, "rectanglelabels": [one.name]},
                }
            )
        score = float(self.scores.mean()) if len(self) else 0.0
        return {"model_version": model, "score": score, "result": regions}

    def _inside(self, box: Box) -> Box:
        """The part of a box that is inside of the image."""
        x1, y1, x2, y2 = box
        height, width = self.size
        return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)

    def name(self, label: int) -> str:
        """The name of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self, *, masks: bool = False) -> dict[str, Any]:
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        objects: list[dict[str, Any]] = [
            {"label": i, "name": self.name(i), "score": score, "box": box} for i, score, box in rows
        ]
        if masks and self.masks is not None:
            for one, segmentation in zip(objects, run_lengths(as_array(self.masks)), strict=True):
                one["segmentation"] = segmentation
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
        segmentations = [] if self.masks is None else run_lengths(as_array(self.masks))
        boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in self.boxes.tolist()]
        rows = zip(self.labels.tolist(), boxes, self.scores.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": box,
                "score": score,
                **({"segmentation": segmentations[i]} if segmentations else {}),
            }
            for i, (label, box, score) in enumerate(rows)
        ]

    def coco_entries(self, image_id: Any, category_ids: Sequence[Any], name: str) -> dict[str, list[dict[str, Any]]]:
        """Returns the list of ``detections.json``."""
        return {"detections": self.to_coco(image_id, category_ids)}
