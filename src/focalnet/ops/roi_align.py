"""RoIAlign (He et al. 2017), aligned: torchvision's on a GPU; on a CPU the same numbers, several times faster.

torchvision's CPU kernel walks one thread over one channel after the other, and took two fifths of a training step of
Mask R-CNN. Here each bin is a weighted sum of rows of the map, channels last: `torch.nn.functional.embedding_bag` adds
up whole rows with all threads and has the gradient. Interpolation and the mean over a bin's samples are both separable,
so that a pixel's weight is the product of that of its row and that of its column, and no pixel comes twice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchvision.ops
from torch import Tensor

from focalnet.ops import modes
from focalnet.ops.weighted_rows import weighted_rows


def roi_align(features: Tensor, rois: Tensor, size: int, scale: float, samples: int = 0) -> Tensor:
    """Means of bilinear samples in each region's bins.

    Args:
        features: ``(B, C, H, W)``; fastest on a CPU if channels come last in memory.
        rois: ``(K, 5)``: index in the batch, and a box in pixels of the image; no gradient flows to them.
        size: bins along a side of a region.
        scale: cells of the map per pixel of the image.
        samples: samples along a side of a bin; 0 for as many as the bin has cells, rounded up.

    Returns:
        ``(K, C, size, size)``. A sample more than a cell outside the map is 0; so is a region without height or width
        where ``samples`` is 0.
    """
    if not len(rois):
        return features[:0, :, :1, :1].expand(-1, -1, size, size)
    if features.device.type != "cpu" and not modes.transformed():
        pooled: Tensor = torchvision.ops.roi_align(features, rois, size, scale, samples, aligned=True)
        return pooled
    count, (_, channels, height, width) = len(rois), features.shape
    boxes = rois[:, 1:].detach().nan_to_num(0)  # a network that has diverged is noticed by its loss
    left, top, right, bottom = (boxes * scale - 0.5).to(features.dtype).unbind(1)
    y = _taps(top, bottom, size, height, samples)
    x = _taps(left, right, size, width, samples)

    # A bin's taps are those of its column for each of those of its row. Regions differ in how many they have, so all
    # bins lie end to end.
    taps = (y.cells * x.cells).repeat_interleave(size * size)
    start = taps.cumsum(0) - taps
    bin_ = torch.arange(len(taps), device=rois.device).repeat_interleave(taps)
    place = torch.arange(len(bin_), device=rois.device) - start[bin_]
    region, row, column = bin_ // (size * size), bin_ // size % size, bin_ % size
    i, j = place // x.cells[region], place % x.cells[region]
    weight = y.weight[region, row, i] * x.weight[region, column, j]
    line = rois[:, 0].long()[region] * height + (y.first[region, row] + i).clamp(max=height - 1)
    cell = line * width + (x.first[region, column] + j).clamp(max=width - 1)

    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    bins = weighted_rows(rows, cell, weight, start)
    return bins.view(count, size, size, channels).permute(0, 3, 1, 2)


class _Taps(NamedTuple):
    """Which cells the bins of each region read along one axis, and how much of each.

    Attributes:
        first: ``(K, size)``, the first cell of each bin.
        cells: ``(K,)``, cells that a bin reads from there on; those beyond the map weigh nothing.
        weight: ``(K, size, max(cells))``.
    """

    first: Tensor
    cells: Tensor
    weight: Tensor


def _taps(low: Tensor, high: Tensor, size: int, length: int, samples: int) -> _Taps:
    """The taps of regions from ``low`` to ``high``, ``(K,)`` in cells of a map of ``length`` cells."""
    extent = (high - low).clamp(min=0) / size  # of a bin
    per_bin = torch.full_like(extent, samples) if samples else extent.ceil()
    step = extent / per_bin.clamp(min=1)
    sample = torch.arange(int(per_bin.max()), device=low.device)
    bins = low[:, None] + extent[:, None] * torch.arange(size, device=low.device)
    at = bins[..., None] + step[:, None, None] * (sample + 0.5)  # (K, size, samples)
    counts = (sample < per_bin[:, None, None]) & (at >= -1) & (at <= length)
    share = counts / per_bin.clamp(min=1)[:, None, None]

    at = at.clamp(0, length - 1)
    first = (bins + step[:, None] / 2).clamp(0, length - 1).floor()
    count = (step * (per_bin - 1)).clamp(min=0).ceil().long() + 2  # from the first sample's cell to beyond the last's
    cell = first[..., None] + torch.arange(int(count.max()), device=low.device)  # (K, size, taps)
    near = (1 - (at[..., None, :] - cell[..., None]).abs()).clamp(min=0)  # (K, size, taps, samples)
    return _Taps(first.long(), count, (near * share[..., None, :]).sum(-1))
