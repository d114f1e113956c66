"""Multi-scale deformable attention (Zhu et al., ICLR 2021, equation 3): a few sampled points instead of all of them.

B batch, Q queries, H heads, D channels of a head, L levels, P points of a head on a level, S cells of all levels.
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

_FRAME = 2  # cells of zeros around each level


def multi_scale_deformable_attention(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """For each query and head, the weighted sum of values sampled bilinearly at points of every level.

    On a CPU, and under ``torch.func`` and forward-mode AD, the points are gathered (``by_gathering``), elsewhere and
    for export sampled (``by_sampling``); both give the same numbers. It computes in float32 at least, also within
    autocast.

    Args:
        values: ``(B, S, H, D)``, the levels one after the other, each row by row.
        shapes: L times height and width.
        locations: ``(B, Q, H, L, P, 2)``, x and y in units of the level: 0 and 1 are the outer edges of its cells.
            Beyond them everything is zero.
        weights: ``(B, Q, H, L, P)``, of each point.

    Returns:
        ``(B, Q, H * D)``, float32 or float64.

    Raises:
        InputError: shapes that do not fit together.
    """
    _check(values, shapes, locations, weights)
    gather = (values.device.type == "cpu" or modes.transformed()) and not modes.exporting()
    compute = by_gathering if gather else by_sampling
    with without_autocast(values.device):
        dtype = torch.promote_types(torch.promote_types(values.dtype, locations.dtype), torch.float32)
        return compute(values.to(dtype), shapes, locations.to(dtype), weights.to(dtype))


def by_sampling(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """By ``grid_sample``, level by level: the truth for tests."""
    batch, _, heads, channels = values.shape
    queries, points = locations.shape[1], locations.shape[4]
    maps = values.permute(0, 2, 3, 1).flatten(0, 1)  # (B H, D, S)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B H, Q, L, P, 2)
    share = weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(shapes), points)
    out = values.new_zeros(batch * heads, channels, queries)
    for level, (part, shape) in enumerate(zip(torch.split(maps, [h * w for h, w in shapes], -1), shapes, strict=True)):
        sampled = F.grid_sample(
            torch.unflatten(part, -1, shape), grids[:, :, level], align_corners=False
        )  # (B H, D, Q, P)
        out = out + (sampled * share[..., level, :]).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2)


def by_gathering(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """By one weighted sum of rows: an embedding bag whose table are the values and whose words are the corners.

    The channels of a cell lie together in memory, so that each of the four corners of a point is one read, where
    ``grid_sample`` makes one for each channel. A frame of zeros around each level stands for what lies beyond.
    """
    heads = values.shape[2]
    parts = zip(torch.split(values, [h * w for h, w in shapes], 1), shapes, strict=True)
    framed = [
        F.pad(torch.unflatten(part, 1, shape), (0, 0, 0, 0, *[_FRAME] * 4)).flatten(1, 2) for part, shape in parts
    ]
    table = torch.cat(framed, 1)  # (B, S', H, D)
    extents = locations.new_tensor([(w, h) for h, w in shapes])[:, None]  # (L, 1, 2)
    # What is further out than a cell is as zero, and so are its gradients, as in the middle of the frame.
    place = (locations * extents - 0.5).clamp(min=-1.5).minimum(extents + 0.5)
    corner = place.detach().floor()
    right, below = (place - corner).unbind(-1)
    rows = torch.stack([(1 - below) * weights, below * weights], -1)
    share = rows[..., None] * torch.stack([1 - right, right], -1)[..., None, :]  # (B, Q, H, L, P, 2, 2)
    words = _words(corner, shapes, table.shape)
    starts = torch.arange(0, words.numel(), words.shape[-1], dtype=words.dtype, device=words.device)
    bags = weighted_rows(table.flatten(0, 2), words.flatten(), share.flatten(), starts)
    return bags.view(len(values), -1, heads * values.shape[3])


def _words(corner: Tensor, shapes: Shapes, table: torch.Size) -> Tensor:
    """Rows of the table at the four corners of each point, int32 ``(B, Q, H, L P 4)``."""
    batch, cells, heads, _ = table
    whole = partial(torch.tensor, dtype=torch.int32, device=corner.device)
    widths = [w + 2 * _FRAME for _, w in shapes]
    sizes = [(h + 2 * _FRAME) * width for (h, _), width in zip(shapes, widths, strict=True)]
    origins = whole([sum(sizes[:i]) + _FRAME * (width + 1) for i, width in enumerate(widths)])  # of the maps
    images = whole(range(batch)).view(-1, 1, 1) * cells
    start = (images + origins) * heads + whole(range(heads))[:, None]  # (B, H, L)
    x, y = corner.to(torch.int32).unbind(-1)
    first = (y * whole(widths)[:, None] + x) * heads + start[:, None, :, :, None]
    steps = whole([(0, 1, width, width + 1) for width in widths]) * heads
    words: Tensor = first[..., None] + steps[:, None]
    return words.flatten(3)


def _check(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    heads, levels = values.shape[2], len(shapes)
    if values.shape[1] != sum(h * w for h, w in shapes):
        raise InputError(f"values have {values.shape[1]} cells, levels {list(shapes)} have another number")
    if locations.shape[2:4] != (heads, levels) or locations.shape[:-1] != weights.shape or locations.shape[-1] != 2:
        raise InputError(
            f"locations {tuple(locations.shape)} and weights {tuple(weights.shape)} must be (B, Q, H, L, P, 2) and "
            f"(B, Q, H, L, P) with {heads} heads and {levels} levels"
        )
