"""Assigning objects to anchors, proposals and queries: max-IoU, ATSS and Hungarian assignment; sampling.

The assigners return, for every box or query, ``k > 0`` for object ``k - 1``, 0 for background, -1 for ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from focalnet.errors import require
from focalnet.ops import modes, vision
from focalnet.ops.boxes import cover

_INSIDE = 0.01  # minimum distance in pixels of an anchor's center from the object's border (ATSS)
_CHUNK = 1 << 17  # boxes compared at once, to bound memory with hundreds of objects per image


def max_iou_assign(
    boxes: Tensor,
    objects: Tensor,
    ignored: Tensor,
    *,
    positive: float,
    negative: float,
    low_quality: float | None = None,
    ignore: float | None = None,
) -> Tensor:
    """Assigns each box to the object it overlaps most (Faster R-CNN, section 3.1.2).

    Args:
        boxes: ``(N, 4)``.
        objects: ``(G, 4)``.
        ignored: ``(M, 4)``, crowd regions.
        positive: minimum IoU of a box with its object.
        negative: boxes with an IoU below this are background.
        low_quality: low-quality matches: an object also gets the boxes with its highest IoU, including ties, if that
            IoU is at least this; None to disable.
        ignore: a box is ignored if more than this share of it lies in a crowd region; None to disable.
    """
    chunks = torch.split(boxes, _CHUNK)
    iou = torch.cat([vision.box_iou(objects, chunk) for chunk in chunks], 1).nan_to_num(0.0)  # (G, N)
    if ignore is not None and len(ignored):
        iou[:, cover(boxes, ignored).amax(1) > ignore] = -1.0
    assigned = boxes.new_full((len(boxes),), -1, dtype=torch.long)
    if not len(objects) or not len(boxes):
        assigned[:] = 0
        return _without_ignored(assigned, boxes, ignored, ignore)
    best, index = iou.max(0)
    assigned[(best >= 0) & (best < negative)] = 0
    assigned = torch.where(best >= positive, index + 1, assigned)
    if low_quality is not None:
        nearest = iou.amax(1, keepdim=True)
        low_quality_match = (iou == nearest) & (nearest >= low_quality)
        number = torch.arange(1, len(objects) + 1, device=iou.device)[:, None]
        last = (low_quality_match * number).amax(0)  # if several objects match a box, the last one gets it
        assigned = torch.where(last > 0, last, assigned)
    return assigned


def atss_assign(
    anchors: Sequence[Tensor], objects: Tensor, ignored: Tensor, *, candidates: int, ignore: float | None = None
) -> Tensor:
    """Adaptive training sample selection (Zhang et al. 2020, algorithm 1).

    Args:
        anchors: ``(n_l, 4)`` of each level.
        objects: ``(G, 4)``.
        ignored: ``(M, 4)``, crowd regions.
        candidates: number of nearest anchors per level that are candidates for an object.
        ignore: as in ``max_iou_assign``.
    """
    boxes = torch.cat(list(anchors))
    assigned = boxes.new_zeros((len(boxes),), dtype=torch.long)
    if not len(objects):
        return _without_ignored(assigned, boxes, ignored, ignore)
    centers, object_centers = ((b[:, :2] + b[:, 2:]) / 2 for b in (boxes, objects))
    distance = (centers[:, None] - object_centers[None]).pow(2).sum(-1).sqrt()  # (N, G)
    assigned = _without_ignored(assigned, boxes, ignored, ignore)
    distance[assigned < 0] = torch.inf
    start, near = 0, []
    for level in anchors:
        of_level = distance[start : start + len(level)]
        near.append(of_level.topk(min(candidates, len(level)), 0, largest=False).indices + start)
        start += len(level)
    nearest = torch.cat(near)  # (K, G)
    iou = vision.box_iou(boxes, objects).nan_to_num(0.0)
    near_iou = iou.gather(0, nearest)
    threshold = near_iou.mean(0) + near_iou.std(0)
    low, high = objects[:, :2], objects[:, 2:]
    margins = torch.cat([centers[nearest] - low, high - centers[nearest]], -1)
    chosen = (near_iou >= threshold) & (margins.amin(-1) > _INSIDE) & (assigned[nearest] == 0)
    positive = torch.zeros_like(iou, dtype=torch.bool).scatter_(0, nearest, chosen)
    best, index = iou.masked_fill(~positive, -torch.inf).max(1)
    return torch.where(best > -torch.inf, index + 1, assigned)


def hungarian_match(cost: Tensor) -> Tensor:
    """Assigns each object to a different prediction at the lowest total cost (Hungarian algorithm).

    Args:
        cost: ``(predictions, objects)``.
    """
    solve = require("scipy.optimize", "train").linear_sum_assignment
    values = cost.detach().float().cpu()
    # Tensors wrapped by torch.func do not support numpy().
    matrix = np.reshape(values.tolist(), values.shape) if modes.transformed() else values.numpy()
    rows, columns = solve(matrix)
    assigned = cost.new_zeros((len(cost),), dtype=torch.long)
    assigned[torch.as_tensor(rows, device=cost.device)] = torch.as_tensor(columns, device=cost.device) + 1
    return assigned


def sample(assigned: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Samples at most ``count`` boxes for a loss: positives up to their share, then negatives.

    Args:
        assigned: result of an assigner.
        count: maximum number of positives and negatives together.
        positive_share: maximum share of positives in ``count``, 0 to 1.

    Returns:
        Indices of the positives and of the negatives, each ascending.
    """
    positive = _random((assigned > 0).nonzero().flatten(), int(count * positive_share))
    return positive, _random((assigned == 0).nonzero().flatten(), count - len(positive))


def _random(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    # Sampled on the CPU, so that a seed gives the same sample on every device.
    return indices[torch.randperm(len(indices))[:count].to(indices.device)].sort().values


def _without_ignored(assigned: Tensor, boxes: Tensor, ignored: Tensor, ignore: float | None) -> Tensor:
    if ignore is None or not len(ignored):
        return assigned
    return assigned.masked_fill(cover(boxes, ignored).amax(1) > ignore, -1)
