"""Confusion matrices, for detection including missed objects and false positives."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from focalnet.errors import require
from focalnet.results import Detections
from focalnet.samples import ObjectTarget


class DetectionConfusion:
    """Counts of target and predicted classes; the last row is "background", the last column "missed".

    Args:
        num_classes: number of classes of the data.
        min_score: detections with a lower score are ignored.
        min_iou: lowest IoU of a matched detection and target.
    """

    def __init__(self, num_classes: int, *, min_score: float = 0.5, min_iou: float = 0.5) -> None:
        self.min_score, self.min_iou = min_score, min_iou
        self.matrix = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64)

    def update(self, predictions: Detections, target: ObjectTarget) -> None:
        """Adds one image; the boxes of both are in pixels of the same image size."""
        predictions = predictions.above(self.min_score)
        pairs = match(predictions.boxes, target.boxes, self.min_iou)
        missed = _unmatched(len(target.boxes), pairs[:, 1])
        false_positives = _unmatched(len(predictions), pairs[:, 0])
        false_positives = false_positives[~_within(predictions.boxes[false_positives], target.ignored)]
        background = len(self.matrix) - 1
        target_labels = torch.cat(
            [
                target.labels[pairs[:, 1]],
                target.labels[missed],
                false_positives.new_full(false_positives.shape, background),
            ]
        )
        predicted_labels = torch.cat(
            [
                predictions.labels[pairs[:, 0]],
                missed.new_full(missed.shape, background),
                predictions.labels[false_positives],
            ]
        )
        self.matrix += count_pairs(target_labels, predicted_labels, tuple(self.matrix.shape))


def count_pairs(targets: Tensor, predictions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A confusion matrix: counts with a row for each target class and a column for each predicted class.

    Args:
        targets: classes ``(N,)``, int64.
        predictions: classes ``(N,)``, int64.
        shape: rows and columns.
    """
    rows, columns = shape
    return torch.bincount(targets * columns + predictions, minlength=rows * columns).view(rows, columns)


def match(predictions: Tensor, targets: Tensor, min_iou: float) -> Tensor:
    """Matches boxes one to one, regardless of their classes, to maximize the sum of their IoUs.

    Args:
        predictions: boxes ``(N, 4)``, x1 y1 x2 y2.
        targets: boxes ``(M, 4)``.
        min_iou: lowest IoU of a match.

    Returns:
        ``(K, 2)`` indices of predictions and targets.
    """
    overlaps = box_iou(predictions, targets)
    overlaps = overlaps.where(overlaps >= min_iou, 0)
    rows, columns = require("scipy.optimize", "dense").linear_sum_assignment(overlaps.numpy(), maximize=True)
    pairs = torch.stack([torch.as_tensor(rows), torch.as_tensor(columns)], dim=1)
    return pairs[overlaps[pairs[:, 0], pairs[:, 1]] > 0]


def _unmatched(count: int, matched: Tensor) -> Tensor:
    """Indices below ``count`` that are not in ``matched``."""
    free = torch.ones(count, dtype=torch.bool)
    free[matched] = False
    return free.nonzero().flatten()


def _within(boxes: Tensor, regions: Tensor) -> Tensor:
    """Whether at least half of a box lies in one of the regions."""
    if not len(regions) or not len(boxes):
        return torch.zeros(len(boxes), dtype=torch.bool)
    corners = torch.cat([boxes[:, None, :2].maximum(regions[:, :2]), boxes[:, None, 2:].minimum(regions[:, 2:])], -1)
    shared = (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)
    inside: Tensor = (shared >= 0.5 * box_area(boxes)[:, None]).any(1)
    return inside
