"""Anchors: the reference boxes of a detector's dense predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def base_anchors(stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """Anchors ``(A, 4)`` centered at the origin, of side ``stride * scale``: one per ratio of height to width."""
    root = torch.tensor(ratios).sqrt()
    half = torch.stack([1 / root, root], 1) * (stride * scale) / 2
    return torch.cat([-half, half], 1)


def grid_anchors(base: Tensor, stride: int, map_size: tuple[int, int]) -> Tensor:
    """Anchors of every cell of a feature map, ``(H * W * A, 4)``: by row, column, anchor.

    The anchors of cell (y, x) are centered at ``(x * stride, y * stride)``, its corner, as in the published models.
    """
    ys, xs = (torch.arange(n, device=base.device) * stride for n in map_size)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    shifts = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
    return (shifts + base).view(-1, 4)


def inside_image(map_size: tuple[int, int], stride: int, padded: tuple[int, int], per_cell: int) -> Tensor:
    """Mask of a feature map's anchors on the image, not on batch padding, ``(H * W * A,)``, bool.

    Args:
        map_size: height and width of the feature map.
        stride: pixels per cell.
        padded: height and width of the image with its own padding.
        per_cell: number of anchors per cell.
    """
    rows, columns = (torch.arange(n) < -(-pixels // stride) for n, pixels in zip(map_size, padded, strict=True))
    return (rows[:, None] & columns).flatten().repeat_interleave(per_cell)


def flatten(x_BCHW: Tensor, values: int) -> Tensor:
    """Reorders predictions ``(B, A * values, H, W)`` like the anchors: ``(B, H * W * A, values)``."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(x_BCHW.shape[0], -1, values)
