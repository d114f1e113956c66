"""Which classes are taken for which, which objects are missed, and what is seen where nothing is."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from focalnet.errors import require
from focalnet.results import Detections
from focalnet.samples import ObjectTarget


class DetectionConfusion:
    """Counts of true and predicted classes, with a last row "nothing there" and a last column "missed".

    Args:
        num_classes: of the data.
        min_score: only detections with at least that score count.
        min_iou: only boxes that overlap at least so much can be of one object.
    """

    def __init__(self, num_classes: int, *, min_score: float = 0.5, min_iou: float = 0.5) -> None:
        self.min_score, self.min_iou = min_score, min_iou
        self.matrix = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64)

    def update(self, found: Detections, target: ObjectTarget) -> None:
        """Adds one image; boxes of both in the same pixels."""
        found = found.above(self.min_score)
        pairs = match(found.boxes, target.boxes, self.min_iou)
        missed = _others(len(target.boxes), pairs[:, 1])
        invented = _others(len(found), pairs[:, 0])
        invented = invented[~_within(found.boxes[invented], target.ignored)]
        nothing = len(self.matrix) - 1
        true = torch.cat(
            [target.labels[pairs[:, 1]], target.labels[missed], invented.new_full(invented.shape, nothing)]
        )
        seen = torch.cat([found.labels[pairs[:, 0]], missed.new_full(missed.shape, nothing), found.labels[invented]])
        self.matrix += count_pairs(true, seen, tuple(self.matrix.shape))


def count_pairs(true: Tensor, seen: Tensor, shape: tuple[int, ...]) -> Tensor:
    """How often each class was taken for each: a matrix of counts, a row for each true class.

    Args:
        true: classes ``(N,)``, int64.
        seen: what each was taken for, ``(N,)``.
        shape: rows and columns.
    """
    rows, columns = shape
    return torch.bincount(true * columns + seen, minlength=rows * columns).view(rows, columns)


def match(found: Tensor, true: Tensor, min_iou: float) -> Tensor:
    """Pairs boxes one to one, whatever their class, so that their overlaps add up to the most.

    Args:
        found: boxes ``(N, 4)``, x1 y1 x2 y2.
        true: boxes ``(M, 4)``.
        min_iou: of a pair.

    Returns:
        ``(K, 2)`` indices: found, true.
    """
    overlaps = box_iou(found, true)
    overlaps = overlaps.where(overlaps >= min_iou, 0)
    rows, columns = require("scipy.optimize", "dense").linear_sum_assignment(overlaps.numpy(), maximize=True)
    pairs = torch.stack([torch.as_tensor(rows), torch.as_tensor(columns)], dim=1)
    return pairs[overlaps[pairs[:, 0], pairs[:, 1]] > 0]


def _others(count: int, taken: Tensor) -> Tensor:
    """Indices from 0 to ``count`` that are not taken."""
    left = torch.ones(count, dtype=torch.bool)
    left[taken] = False
    return left.nonzero().flatten()


def _within(boxes: Tensor, regions: Tensor) -> Tensor:
    """Whether at least half of a box lies in one of the regions."""
    if not len(regions) or not len(boxes):
        return torch.zeros(len(boxes), dtype=torch.bool)
    corners = torch.cat([boxes[:, None, :2].maximum(regions[:, :2]), boxes[:, None, 2:].minimum(regions[:, 2:])], -1)
    shared = (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)
    inside: Tensor = (shared >= 0.5 * box_area(boxes)[:, None]).any(1)
    return inside
