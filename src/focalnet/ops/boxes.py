"""Boxes as tensors: how a box is written relative to another, overlaps, and suppression of duplicates.

A box is x1 y1 x2 y2 in pixels, floating point, without the "+1" some detectors put into widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

_MAX_LOG_RATIO = math.log(1000 / 16)  # no box grows by more than 62.5: the limit every R-CNN code shares


def encode(priors: Tensor, boxes: Tensor, stds: Sequence[float]) -> Tensor:
    """Writes boxes relative to priors (Girshick et al. 2014, equations 6 to 9), each number divided by its std.

    Args:
        priors: ``(..., 4)``, of some size.
        boxes: ``(..., 4)``, of some size.
        stds: of dx, dy, dw, dh.

    Returns:
        ``(..., 4)``: dx, dy in units of the prior's size; dw, dh logarithms of the ratio of sizes.
    """
    centre, size = _centre_size(priors)
    box_centre, box_size = _centre_size(boxes)
    deltas = torch.cat([(box_centre - centre) / size, (box_size / size).log()], -1)
    return deltas / deltas.new_tensor(stds)


def decode(
    priors: Tensor, deltas: Tensor, stds: Sequence[float], size: tuple[int, int] | Tensor | None = None
) -> Tensor:
    """The inverse of ``encode``; with ``size`` the boxes are cut to the image, see ``clip``.

    Changes of size beyond a factor of 62.5 are cut off.
    """
    centre, extent = _centre_size(priors)
    shift, log_ratio = (deltas * deltas.new_tensor(stds)).chunk(2, -1)
    centre = centre + shift * extent
    half = extent * log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp() / 2
    boxes = torch.cat([centre - half, centre + half], -1)
    return boxes if size is None else clip(boxes, size)


def clip(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Boxes ``(..., 4)`` cut to an image of ``size`` (height, width), or each to its own of ``(..., 2)``."""
    width_height = torch.as_tensor(size, device=boxes.device, dtype=boxes.dtype).flip(-1)
    return boxes.clamp(min=0).minimum(torch.cat([width_height, width_height], -1))


def resize(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Boxes of an image of ``size`` (height, width) in pixels of the same image at ``new_size``."""
    x, y = size[1] / new_size[1], size[0] / new_size[0]  # the published code divides by the forward factors
    return boxes / boxes.new_tensor([x, y, x, y])


def cover(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box ``(N, 4)`` that lies in each region ``(M, 4)``: ``(N, M)``, 0 to 1."""
    corner = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    extent = (torch.minimum(boxes[:, None, 2:], regions[None, :, 2:]) - corner).clamp(min=0)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1, keepdim=True)
    return extent.prod(-1) / area.clamp(min=1e-6)


def best_per_class(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression within each class: the ``limit`` best boxes, their scores and labels, best first.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``.
        labels: ``(N,)``; boxes of different labels never suppress each other.
        iou_threshold: a box goes if its IoU with a better one is above this.
        limit: how many are kept.
    """
    keep = batched_nms(boxes, scores, labels, iou_threshold)[:limit]
    return boxes[keep], scores[keep], labels[keep]


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.chunk(2, -1)
    return (low + high) / 2, high - low
