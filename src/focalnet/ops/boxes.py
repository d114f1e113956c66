"""Operations on boxes: encoding relative to priors, clipping, resizing, overlap and NMS.

Boxes are x1, y1, x2, y2 in pixels, floating point; the width is x2 - x1, without the "+1" of some old detectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from focalnet.ops import vision

_MAX_LOG_RATIO = math.log(1000 / 16)  # sizes change at most by 62.5, the usual limit in R-CNN implementations


def encode(priors: Tensor, boxes: Tensor, stds: Sequence[float]) -> Tensor:
    """Encodes boxes relative to priors (Girshick et al. 2014, equations 6 to 9), divided by the standard deviations.

    Args:
        priors: ``(..., 4)``, with sizes above 0.
        boxes: ``(..., 4)``, with sizes above 0.
        stds: standard deviations of dx, dy, dw, dh.

    Returns:
        ``(..., 4)``: dx, dy in units of the prior's size; dw, dh as logarithms of the ratio of sizes.
    """
    center, size = _center_size(priors)
    box_center, box_size = _center_size(boxes)
    deltas = torch.cat([(box_center - center) / size, (box_size / size).log()], -1)
    return deltas / deltas.new_tensor(stds)


def decode(
    priors: Tensor, deltas: Tensor, stds: Sequence[float], size: tuple[int, int] | Tensor | None = None
) -> Tensor:
    """The inverse of ``encode``; with ``size`` the boxes are clipped to the image, see ``clip``.

    Factors between sizes are clamped to at most 62.5.
    """
    center, extent = _center_size(priors)
    shift, log_ratio = (deltas * deltas.new_tensor(stds)).chunk(2, -1)
    center = center + shift * extent
    half = extent * log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp() / 2
    boxes = torch.cat([center - half, center + half], -1)
    return boxes if size is None else clip(boxes, size)


def corners(boxes: Tensor) -> Tensor:
    """Boxes ``(..., 4)`` given by center, width and height as x1, y1, x2, y2."""
    center, size = boxes.chunk(2, -1)
    return torch.cat([center - size / 2, center + size / 2], -1)


def clip(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Clips boxes ``(..., 4)`` to an image of ``size`` (height, width), or to a size per box, ``(..., 2)``."""
    width_height = torch.as_tensor(size, device=boxes.device, dtype=boxes.dtype).flip(-1)
    return boxes.clamp(min=0).minimum(torch.cat([width_height, width_height], -1))


def resize(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Converts boxes of an image of ``size`` (height, width) to pixels of the image resized to ``new_size``."""
    x, y = size[1] / new_size[1], size[0] / new_size[0]  # the published code divides by the forward factors
    return boxes / boxes.new_tensor([x, y, x, y])


def objects(boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Objects of each image as tensors of an exported network; rows that are not kept have score 0 and label -1.

    Args:
        boxes: ``(B, K, 4)``.
        scores: ``(B, K)``, best first.
        labels: ``(B, K)``.
        kept: ``(B, K)``, bool; those that are not follow those that are.
    """
    empty = ~kept
    return {
        "boxes": boxes.masked_fill(empty[..., None], 0.0),
        "scores": scores.masked_fill(empty, 0.0),
        "labels": labels.masked_fill(empty, -1),
    }


def best_objects(boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor, limit: int) -> dict[str, Tensor]:
    """The best objects of each image as ``objects``; arguments in any order, ``limit`` the maximum number of them."""
    ranked, index = scores.masked_fill(~kept, -1.0).topk(torch.sym_min(limit, scores.shape[1]))
    of_best = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return objects(of_best, ranked, labels.gather(1, index), ranked >= 0)


def nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, *, iou_threshold: float, groups: int
) -> Tensor:
    """Non-maximum suppression within each class of each image, for exported networks: which boxes stay, ``(B, K)``.

    All boxes go through one call: each class of each image is moved to a place of its own.

    Args:
        boxes: ``(B, K, 4)``, none negative.
        scores: ``(B, K)``, none negative.
        labels: ``(B, K)``, below ``groups``.
        valid: ``(B, K)``, bool; others neither stay nor suppress any.
        iou_threshold: a box is removed if its IoU with a better one is above this.
        groups: number of classes.
    """
    columns = math.ceil(math.sqrt(groups))  # a square of places for the classes of an image, images below each other
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    place = torch.stack([labels % columns, labels // columns + image * columns], -1).to(boxes)
    moved = boxes + (place * (boxes.flatten().amax(0) + 1)).repeat(1, 1, 2)
    ranked = scores.masked_fill(~valid, -1.0)
    kept = vision.nms(moved.flatten(0, 1), ranked.flatten(), iou_threshold)
    stays = torch.zeros_like(ranked, dtype=torch.int64).flatten().scatter(0, kept, torch.ones_like(kept))
    return (stays.view(ranked.shape) > 0) & valid


def nms_of_some(boxes: Tensor, scores: Tensor, candidate: Tensor, iou_threshold: float) -> Tensor:
    """As ``nms_mask`` for a box of each class, of which only a few are candidates: which stay, ``(B, P, N)``.

    Args:
        boxes: ``(B, P, N, 4)``, none negative.
        scores: ``(B, P, N)``.
        candidate: ``(B, P, N)``, bool.
        iou_threshold: a box is removed if its IoU with a better one is above this.
    """
    index = candidate.flatten().nonzero()[:, 0]
    regions, classes = scores.shape[1:]
    columns = math.ceil(math.sqrt(classes))
    label, image = index % classes, index // (regions * classes)
    place = torch.stack([label % columns, label // columns + image * columns], -1).to(boxes)
    moved = boxes.flatten(0, 2)[index] + (place * (boxes.flatten().amax(0) + 1)).repeat(1, 2)
    kept = index[vision.nms(moved, scores.flatten()[index], iou_threshold)]
    stays = torch.zeros_like(scores, dtype=torch.int64).flatten().scatter(0, kept, torch.ones_like(kept))
    return stays.view(scores.shape) > 0


def resize_batch(boxes: Tensor, sizes_B2: Tensor, new_sizes_B2: Tensor) -> Tensor:
    """``resize`` of boxes ``(B, K, 4)`` for sizes ``(B, 2)`` of each image."""
    return boxes / (sizes_B2 / new_sizes_B2).to(boxes).flip(-1).repeat(1, 2)[:, None]


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
        labels: ``(N,)``; boxes of different labels do not suppress each other.
        iou_threshold: a box is removed if its IoU with a better one is above this.
        limit: maximum number of boxes kept.
    """
    keep = suppress(boxes, scores, labels, iou_threshold)[:limit]
    return boxes[keep], scores[keep], labels[keep]


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that non-maximum suppression within each class keeps, best first; see ``best_per_class``."""
    keep: Tensor = vision.batched_nms(boxes, scores, labels, iou_threshold)
    return keep


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.chunk(2, -1)
    return (low + high) / 2, high - low
