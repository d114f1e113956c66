"""Anchors: the boxes a detector's dense predictions are relative to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def base_anchors(stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """Anchors ``(A, 4)`` about the origin: side ``stride * scale``, one for each ratio of height to width."""
    root = torch.tensor(ratios).sqrt()
    half = torch.stack([1 / root, root], 1) * (stride * scale) / 2
    return torch.cat([-half, half], 1)


def grid_anchors(base: Tensor, stride: int, map_size: tuple[int, int]) -> Tensor:
    """Anchors of every cell of a map, ``(H * W * A, 4)``: by row, column, anchor.

    The centre of cell (y, x) is ``(x * stride, y * stride)``: the cell's corner, as in the published models.
    """
    ys, xs = (torch.arange(n, device=base.device) * stride for n in map_size)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    shifts = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
    return (shifts + base).view(-1, 4)


def inside_image(map_size: tuple[int, int], stride: int, padded: tuple[int, int], per_cell: int) -> Tensor:
    """Which anchors of a map lie on the image rather than on what pads it to the batch, ``(H * W * A,)`` bool.

    Args:
        map_size: height and width of the map.
        stride: pixels per cell.
        padded: height and width of the image, rounded up as it is when alone in a batch.
        per_cell: anchors of a cell.
    """
    rows, columns = (torch.arange(n) < -(-pixels // stride) for n, pixels in zip(map_size, padded, strict=True))
    return (rows[:, None] & columns).flatten().repeat_interleave(per_cell)


def flatten(x_BCHW: Tensor, values: int) -> Tensor:
    """Predictions ``(B, A * values, H, W)`` in the order of the anchors: ``(B, H * W * A, values)``."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(x_BCHW.shape[0], -1, values)
