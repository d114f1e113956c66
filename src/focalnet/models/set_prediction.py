"""Matching of predictions to objects in set-prediction detectors (DETR family, Sparse R-CNN)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from focalnet.ops import vision
from focalnet.ops.assign import hungarian_match
from focalnet.samples import ObjectTarget

CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0  # Sparse R-CNN's, in both cost and loss
HIGHEST_COST = 1e6  # stands for what is not a number, so that the loss, and not the matching, reports it
_ALPHA, _GAMMA, _EPS = 0.25, 2.0, 1e-12


def matching_cost(logits: Tensor, boxes: Tensor, objects: Tensor, labels: Tensor, size: Sequence[float]) -> Tensor:
    """Cost ``(predictions, objects)``: focal loss of the class, L1 distance of the boxes, generalized IoU.

    Args:
        logits: ``(N, classes)``.
        boxes: ``(N, 4)``, predicted boxes.
        objects: ``(G, 4)``, ground-truth boxes.
        labels: ``(G,)``.
        size: height and width of the image, which the L1 distance is divided by.
    """
    height, width = size
    scale = boxes.new_tensor([width, height, width, height])
    distance = torch.cdist(boxes / scale, objects / scale, p=1)
    overlap = vision.generalized_box_iou(boxes, objects)
    cost: Tensor = class_cost(logits, labels) + L1_WEIGHT * distance - GIOU_WEIGHT * overlap
    return cost


def class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Weighted class cost ``(predictions, objects)``; arguments as in ``matching_cost``."""
    score = logits.float().sigmoid()
    positive_cost = -(score + _EPS).log() * _ALPHA * (1 - score) ** _GAMMA
    negative_cost = -(1 - score + _EPS).log() * (1 - _ALPHA) * score**_GAMMA
    cost: Tensor = CLASS_WEIGHT * (positive_cost - negative_cost)[:, labels]
    return cost


def match(logits: Tensor, boxes: Tensor, target: ObjectTarget, size: Sequence[float]) -> Tensor:
    """Matches an image's objects to predictions at the lowest cost; for the return value see ``ops.assign``."""
    cost = matching_cost(logits, boxes, target.boxes.to(boxes), target.labels, size)
    return hungarian_match(cost.nan_to_num(HIGHEST_COST, HIGHEST_COST, -HIGHEST_COST))
