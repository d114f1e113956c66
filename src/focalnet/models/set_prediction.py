"""What it costs to let a prediction stand for an object: the matching of the set-prediction detectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou

from focalnet.ops.assign import hungarian_match
from focalnet.samples import ObjectTarget

CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0  # of Sparse R-CNN, in the cost as in the loss
_ALPHA, _GAMMA, _EPS = 0.25, 2.0, 1e-12


def matching_cost(logits: Tensor, boxes: Tensor, objects: Tensor, labels: Tensor, size: Sequence[float]) -> Tensor:
    """Cost ``(predictions, objects)``: focal loss of the class, L1 distance of the boxes, generalised IoU.

    Args:
        logits: ``(N, classes)``.
        boxes: ``(N, 4)``.
        objects: ``(G, 4)``.
        labels: ``(G,)``.
        size: height and width of the image; the L1 distance is in units of it.
    """
    height, width = size
    scale = boxes.new_tensor([width, height, width, height])
    distance = torch.cdist(boxes / scale, objects / scale, p=1)
    overlap = generalized_box_iou(boxes, objects)
    cost: Tensor = class_cost(logits, labels) + L1_WEIGHT * distance - GIOU_WEIGHT * overlap
    return cost


def class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Cost ``(predictions, objects)`` of the classes, weight included; arguments as for ``matching_cost``."""
    score = logits.float().sigmoid()
    hit = -(score + _EPS).log() * _ALPHA * (1 - score) ** _GAMMA
    miss = -(1 - score + _EPS).log() * (1 - _ALPHA) * score**_GAMMA
    cost: Tensor = CLASS_WEIGHT * (hit - miss)[:, labels]
    return cost


def match(logits: Tensor, boxes: Tensor, target: ObjectTarget, size: Sequence[float]) -> Tensor:
    """The cheapest assignment of an image's objects to predictions; see ``ops.assign`` for what it returns."""
    cost = matching_cost(logits, boxes, target.boxes.to(boxes), target.labels, size)
    return hungarian_match(cost)
