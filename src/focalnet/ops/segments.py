"""Masks: boxes around them, and their values at points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def boxes_around(masks: Tensor) -> Tensor:
    """The smallest box around each mask, ``(N, 4)``, x1 y1 x2 y2; zero where a mask is empty.

    Args:
        masks: ``(N, H, W)``, bool. Its pixels are squares: x2 and y2 are one more than the last column and row.
    """
    (x1, x2), (y1, y2) = (_ends(masks.any(axis)) for axis in (1, 2))
    return torch.stack([x1, y1, x2, y2], 1).float()


def _ends(taken: Tensor) -> tuple[Tensor, Tensor]:
    """First and one after the last of what is true in each row of ``(N, n)``; 0 and 0 where nothing is."""
    size, some = taken.shape[1], taken.any(1)
    first = taken.byte().argmax(1)
    last = size - taken.flip(1).byte().argmax(1)
    return first * some, last * some


def sample_logits(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values ``(..., N, P)`` of masks at points; beyond the edge they fade to zero.

    Args:
        masks: ``(B, N, h, w)``.
        points: ``(B, P, 2)``, x and y in units of the map: 0 and 1 are its outer edges; for all N masks.
    """
    return F.grid_sample(masks, 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


def sample_masks(masks: Tensor, points: Tensor, index: Tensor) -> Tensor:
    """As ``sample_logits``, of bool masks, of which no copy in floating point is made.

    Args:
        masks: ``(G, H, W)``, bool.
        points: ``(K, P, 2)``.
        index: ``(K,)``, which mask each row of points is for.

    Returns:
        ``(K, P)``, in the dtype of ``points``.
    """
    height, width = masks.shape[1:]
    x, y = (points * points.new_tensor([width, height]) - 0.5).unbind(-1)
    right, below = x - x.floor(), y - y.floor()
    left, top = x.floor().long(), y.floor().long()
    flat, start = masks.flatten(), (index * (height * width))[:, None]
    out = torch.zeros_like(x)
    for row, share_of_row in ((top, 1 - below), (top + 1, below)):
        for column, share_of_column in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            cell = (start + row * width + column).where(inside, 0)
            out += (flat[cell] & inside) * share_of_row * share_of_column
    return out
