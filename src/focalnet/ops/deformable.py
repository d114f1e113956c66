"""Multi-scale deformable attention (Zhu et al., ICLR 2021, equation 3): attention to a few sampled points.

Shapes: B batch, Q queries, H heads, D channels per head, L levels, P points per head and level, S cells of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import InputError
from focalnet.ops import modes
from focalnet.ops.precision import without_autocast
from focalnet.ops.weighted_rows import weighted_rows

Shapes = Sequence[tuple[int, int]]  # height and width of each level

_BORDER = 2  # width of the zero border around each level, in cells


def multi_scale_deformable_attention(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """For each query and head, the weighted sum of values sampled bilinearly at points of every level.

    On the CPU, and under ``torch.func`` and forward-mode AD, it uses ``by_gathering``; elsewhere and for export
    ``by_sampling``, or ``by_indexing`` without ``modes.grid_sample``. All give the same results. It computes in float32
    or higher, also within autocast. The output of a location that is NaN is NaN.

    Args:
        values: ``(B, S, H, D)``, the levels concatenated, each row by row.
        shapes: height and width of each of the L levels.
        locations: ``(B, Q, H, L, P, 2)``, x and y relative to the level's size: 0 and 1 are its outer edges. Values
            outside are zero.
        weights: ``(B, Q, H, L, P)``, the attention weight of each point.

    Returns:
        ``(B, Q, H * D)``, float32 or float64.

    Raises:
        InputError: the shapes do not match.
    """
    check(values, shapes, locations, weights)
    gather = (values.device.type == "cpu" or modes.transformed()) and not modes.exporting()
    compute = by_gathering if gather else by_sampling
    if modes.exporting() and not modes.grid_sample_allowed():
        compute = by_indexing
    with without_autocast(values.device):
        dtype = torch.promote_types(torch.promote_types(values.dtype, locations.dtype), torch.float32)
        return compute(values.to(dtype), shapes, locations.to(dtype), weights.to(dtype))


def differentiable(sizes: Sequence[int], values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """``multi_scale_deformable_attention`` that can be differentiated any number of times on any device.

    Args:
        sizes: height and width of each level in turn.
        values: as in ``multi_scale_deformable_attention``.
        locations: as in ``multi_scale_deformable_attention``.
        weights: as in ``multi_scale_deformable_attention``.
    """
    shapes = list(zip(sizes[::2], sizes[1::2], strict=True))
    dtype = torch.promote_types(values.dtype, torch.float32)
    return by_gathering(values.to(dtype), shapes, locations, weights)


def extents(shapes: Shapes, like: Tensor) -> Tensor:
    """Width and height of each level, ``(L, 2)``, in the dtype of ``like``."""
    if not modes.exporting():
        return like.new_tensor([(w, h) for h, w in shapes])
    return torch.stack([like.new_full((), side) for h, w in shapes for side in (w, h)]).view(-1, 2)


def by_sampling(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """By ``grid_sample``, level by level; the reference for tests."""
    batch, _, heads, channels = values.shape
    queries, points = locations.shape[1], locations.shape[4]
    flat = values.permute(0, 2, 3, 1).flatten(0, 1)  # (B H, D, S)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B H, Q, L, P, 2)
    point_weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(shapes), points)
    out = values.new_zeros(batch * heads, channels, queries)
    for level, (level_values, shape) in enumerate(
        zip(torch.split(flat, [h * w for h, w in shapes], -1), shapes, strict=True)
    ):
        sampled = F.grid_sample(
            torch.unflatten(level_values, -1, shape), grids[:, :, level], align_corners=False
        )  # (B H, D, Q, P)
        out = out + (sampled * point_weights[..., level, :]).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2)


def by_indexing(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """By four gathers for each level, for exported graphs without ``grid_sample``."""
    batch, _, heads, channels = values.shape
    queries, points = locations.shape[1], locations.shape[4]
    flat = values.transpose(1, 2).flatten(0, 1)  # (B H, S, D)
    places = locations.transpose(1, 2).flatten(0, 1)  # (B H, Q, L, P, 2)
    point_weights = weights.transpose(1, 2).flatten(0, 1)  # (B H, Q, L, P)
    out = values.new_zeros(batch * heads, queries, channels)
    for level, (level_values, (height, width)) in enumerate(
        zip(torch.split(flat, [h * w for h, w in shapes], 1), shapes, strict=True)
    ):
        x, y = places[:, :, level, :, 0] * width - 0.5, places[:, :, level, :, 1] * height - 0.5
        left, top = x.floor(), y.floor()
        for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
            for column, column_weight in ((left, 1 - (x - left)), (left + 1, x - left)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                cell = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().flatten(1)
                corner = level_values.gather(1, cell[..., None].expand(-1, -1, channels))
                weight = (row_weight * column_weight * point_weights[:, :, level]).where(inside, 0.0)
                weighted = corner.view(batch * heads, queries, points, channels) * weight[..., None]
                out = out + weighted.sum(2)
    return out.view(batch, heads, queries, channels).transpose(1, 2).flatten(2)


def by_gathering(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """By an embedding bag over the values, with the four cells around each point as indices.

    The channels of a cell are contiguous in memory, so each cell is one read, where ``grid_sample`` reads each channel
    separately. A border of zeros around each level represents what is outside.
    """
    heads = values.shape[2]
    levels = zip(torch.split(values, [h * w for h, w in shapes], 1), shapes, strict=True)
    padded = [
        F.pad(torch.unflatten(level, 1, shape), (0, 0, 0, 0, *[_BORDER] * 4)).flatten(1, 2) for level, shape in levels
    ]
    table = torch.cat(padded, 1)  # (B, S', H, D)
    extents = locations.new_tensor([(w, h) for h, w in shapes])[:, None]  # (L, 1, 2)
    # Points more than one cell outside are moved into the border, where values and gradients are zero, too.
    place = (locations * extents - 0.5).clamp(min=-1.5).minimum(extents + 0.5)
    corner = place.detach().floor()  # NaN for locations that are NaN, which sample the border
    right, below = (place - corner).unbind(-1)
    row_weights = torch.stack([(1 - below) * weights, below * weights], -1)
    corner_weights = row_weights[..., None] * torch.stack([1 - right, right], -1)[..., None, :]  # (B, Q, H, L, P, 2, 2)
    indices = _table_rows(corner, shapes, table.shape)
    starts = torch.arange(0, indices.numel(), indices.shape[-1], dtype=indices.dtype, device=indices.device)
    bags = weighted_rows(table.flatten(0, 2), indices.flatten(), corner_weights.flatten(), starts)
    return bags.view(len(values), locations.shape[1], heads * values.shape[3])


def _table_rows(corner: Tensor, shapes: Shapes, table: torch.Size) -> Tensor:
    """Rows of the table for the four cells around each point, ``(B, Q, H, L P 4)``; int32 if it can index them all."""
    batch, cells, heads, _ = table
    dtype = torch.int32 if batch * cells * heads < 2**31 else torch.int64
    int_tensor = partial(torch.tensor, dtype=dtype, device=corner.device)
    widths = [w + 2 * _BORDER for _, w in shapes]
    sizes = [(h + 2 * _BORDER) * width for (h, _), width in zip(shapes, widths, strict=True)]
    origins = int_tensor([sum(sizes[:i]) + _BORDER * (width + 1) for i, width in enumerate(widths)])  # of the levels
    images = int_tensor(range(batch)).view(-1, 1, 1) * cells
    start = (images + origins) * heads + int_tensor(range(heads))[:, None]  # (B, H, L)
    is_nan = corner.isnan().any(-1, keepdim=True)
    x, y = corner.masked_fill(is_nan, -_BORDER).to(dtype).unbind(-1)
    first = (y * int_tensor(widths)[:, None] + x) * heads + start[:, None, :, :, None]
    steps = int_tensor([(0, 1, width, width + 1) for width in widths]) * heads
    indices: Tensor = first[..., None] + steps[:, None]
    return indices.flatten(3)


def check(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    """Raises InputError for inconsistent shapes or devices, with the same message on every backend."""
    if any(tensor.device != values.device for tensor in (locations, weights)):  # on meta PyTorch returns zeros
        raise InputError(f"values are on {values.device}, locations on {locations.device}, weights on {weights.device}")
    if values.ndim != 4 or locations.ndim != 6:
        raise InputError(
            f"values {tuple(values.shape)} and locations {tuple(locations.shape)} must be (B, S, H, D) and "
            "(B, Q, H, L, P, 2)"
        )
    heads, levels = values.shape[2], len(shapes)
    if values.shape[0] != locations.shape[0]:
        raise InputError(f"values have a batch of {values.shape[0]}, locations of {locations.shape[0]}")
    if not shapes or any(h < 1 or w < 1 for h, w in shapes):
        raise InputError(f"levels {list(shapes)} must have at least one level, of a height and width of at least 1")
    if values.shape[1] != sum(h * w for h, w in shapes):
        raise InputError(f"values have {values.shape[1]} cells, which do not match the levels {list(shapes)}")
    if locations.shape[2:4] != (heads, levels) or locations.shape[:-1] != weights.shape or locations.shape[-1] != 2:
        raise InputError(
            f"locations {tuple(locations.shape)} and weights {tuple(weights.shape)} must be (B, Q, H, L, P, 2) and "
            f"(B, Q, H, L, P) with {heads} heads and {levels} levels"
        )
