"""Operations on masks: bounding boxes and values at points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def boxes_around(masks: Tensor) -> Tensor:
    """The bounding box of each mask, ``(N, 4)``, x1 y1 x2 y2; zeros for an empty mask.

    x2 and y2 are exclusive: one more than the last column and row of the mask.

    Args:
        masks: ``(N, H, W)``, bool.
    """
    (x1, x2), (y1, y2) = (_extent(masks.any(axis)) for axis in (1, 2))
    return torch.stack([x1, y1, x2, y2], 1).float()


def _extent(x: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first true value in each row of ``(N, n)``, and one more than the last; zeros if there is none."""
    size, nonempty = x.shape[1], x.any(1)
    first = x.byte().argmax(1)
    end = size - x.flip(1).byte().argmax(1)
    return first * nonempty, end * nonempty


def sample_logits(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values ``(B, N, P)`` of masks at points, with zeros outside the mask.

    Args:
        masks: ``(B, N, h, w)``.
        points: ``(B, P, 2)``, x and y relative to the mask's size: 0 and 1 are its outer edges. All N masks share them.
    """
    return F.grid_sample(masks, 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


def sample_masks(masks: Tensor, points: Tensor, index: Tensor) -> Tensor:
    """As ``sample_logits`` for bool masks, without converting them to floating point.

    Args:
        masks: ``(G, H, W)``, bool.
        points: ``(K, P, 2)``.
        index: ``(K,)``, index of the mask for each row of points.

    Returns:
        ``(K, P)``, in the dtype of ``points``.
    """
    height, width = masks.shape[1:]
    x, y = (points * points.new_tensor([width, height]) - 0.5).unbind(-1)
    right, below = x - x.floor(), y - y.floor()
    left, top = x.floor().long(), y.floor().long()
    flat, start = masks.flatten(), (index * (height * width))[:, None]
    out = torch.zeros_like(x)
    for row, row_weight in ((top, 1 - below), (top + 1, below)):
        for column, column_weight in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            cell = (start + row * width + column).where(inside, 0)
            out += (flat[cell] & inside) * row_weight * column_weight
    return out
