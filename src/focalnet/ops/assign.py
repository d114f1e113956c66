"""Which prediction is to find which object: the assignments of the R-CNN family, ATSS and Sparse R-CNN.

All return, for every box, ``k > 0`` for object ``k - 1``, 0 for background, -1 for "neither".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from focalnet.errors import require
from focalnet.ops import modes
from focalnet.ops.boxes import cover

_INSIDE = 0.01  # pixels by which a centre must be within an object (ATSS)
_CHUNK = 1 << 17  # boxes compared at once; bounds memory where images have hundreds of objects


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
        positive: IoU from which a box belongs to its object.
        negative: IoU below which it is background.
        low_quality: an object takes the boxes nearest to it, all that tie, from this IoU on; None for never.
        ignore: a box of which more than this share lies in a crowd region is neither; None for none.
    """
    iou = torch.cat([box_iou(objects, part) for part in torch.split(boxes, _CHUNK)], 1).nan_to_num(0.0)  # (G, N)
    if ignore is not None and len(ignored):
        iou[:, cover(boxes, ignored).amax(1) > ignore] = -1.0
    assigned = boxes.new_full((len(boxes),), -1, dtype=torch.long)
    if not len(objects):
        assigned[:] = 0
        return _without_ignored(assigned, boxes, ignored, ignore)
    best, index = iou.max(0)
    assigned[(best >= 0) & (best < negative)] = 0
    assigned = torch.where(best >= positive, index + 1, assigned)
    if low_quality is not None:
        nearest = iou.amax(1, keepdim=True)
        takes = (iou == nearest) & (nearest >= low_quality)
        number = torch.arange(1, len(objects) + 1, device=iou.device)[:, None]
        last = (takes * number).amax(0)  # where two objects want a box, the later one has it
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
        candidates: nearest anchors an object considers on each level.
        ignore: as in ``max_iou_assign``.
    """
    boxes = torch.cat(list(anchors))
    assigned = boxes.new_zeros((len(boxes),), dtype=torch.long)
    if not len(objects):
        return _without_ignored(assigned, boxes, ignored, ignore)
    centres, middles = ((b[:, :2] + b[:, 2:]) / 2 for b in (boxes, objects))
    distance = (centres[:, None] - middles[None]).pow(2).sum(-1).sqrt()  # (N, G)
    assigned = _without_ignored(assigned, boxes, ignored, ignore)
    distance[assigned < 0] = torch.inf
    start, near = 0, []
    for level in anchors:
        part = distance[start : start + len(level)]
        near.append(part.topk(min(candidates, len(level)), 0, largest=False).indices + start)
        start += len(level)
    nearest = torch.cat(near)  # (K, G)
    iou = box_iou(boxes, objects).nan_to_num(0.0)
    near_iou = iou.gather(0, nearest)
    threshold = near_iou.mean(0) + near_iou.std(0)
    low, high = objects[:, :2], objects[:, 2:]
    margins = torch.cat([centres[nearest] - low, high - centres[nearest]], -1)
    chosen = (near_iou >= threshold) & (margins.amin(-1) > _INSIDE) & (assigned[nearest] == 0)
    wanted = torch.zeros_like(iou, dtype=torch.bool).scatter_(0, nearest, chosen)
    best, index = iou.masked_fill(~wanted, -torch.inf).max(1)
    return torch.where(best > -torch.inf, index + 1, assigned)


def hungarian_match(cost: Tensor) -> Tensor:
    """The cheapest assignment of each object to a prediction of its own (Hungarian algorithm).

    Args:
        cost: ``(predictions, objects)``.
    """
    solve = require("scipy.optimize", "train").linear_sum_assignment
    values = cost.detach().float().cpu()
    # torch.func wraps tensors; of those only the numbers are to be had.
    matrix = np.reshape(values.tolist(), values.shape) if modes.transformed() else values.numpy()
    rows, columns = solve(matrix)
    assigned = cost.new_zeros((len(cost),), dtype=torch.long)
    assigned[torch.as_tensor(rows, device=cost.device)] = torch.as_tensor(columns, device=cost.device) + 1
    return assigned


def sample(assigned: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Draws at most ``count`` boxes for a loss: positives up to their share, negatives for the rest.

    Args:
        assigned: as the functions above return it.
        count: positives and negatives together.
        positive_share: at most this share of ``count`` are positives, 0 to 1.

    Returns:
        Indices of the positives and of the negatives, each ascending.
    """
    positive = _random((assigned > 0).nonzero().flatten(), int(count * positive_share))
    return positive, _random((assigned == 0).nonzero().flatten(), count - len(positive))


def _random(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    # Drawn on the CPU: a seed then gives the same sample on every device.
    return indices[torch.randperm(len(indices))[:count].to(indices.device)].sort().values


def _without_ignored(assigned: Tensor, boxes: Tensor, ignored: Tensor, ignore: float | None) -> Tensor:
    if ignore is None or not len(ignored):
        return assigned
    return assigned.masked_fill(cover(boxes, ignored).amax(1) > ignore, -1)
