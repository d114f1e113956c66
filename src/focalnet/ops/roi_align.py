"""RoIAlign (He et al. 2017), aligned: torchvision's on GPUs; on CPUs the same results several times faster.

torchvision's CPU kernel is single-threaded and runs channel by channel; it took two fifths of a training step of Mask
R-CNN. Here each bin is a weighted sum of the cells of a channels-last feature map, by ``embedding_bag``, which is
multi-threaded and differentiable. Interpolation and the mean over a bin's samples are both separable, so a cell's
weight is the product of a row weight and a column weight, and each cell occurs once per bin.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from focalnet.ops import modes, vision
from focalnet.ops.weighted_rows import weighted_rows


def roi_align(features: Tensor, rois: Tensor, size: int, scale: float, samples: int = 0) -> Tensor:
    """Mean of bilinear samples in each bin of each region.

    Args:
        features: ``(B, C, H, W)``; fastest on a CPU in channels-last memory format.
        rois: ``(K, 5)``: index in the batch, and a box in pixels of the image; no gradient flows to them.
        size: bins per axis of a region.
        scale: cells of the feature map per pixel of the image.
        samples: samples per axis of a bin; 0 for the bin's size in cells, rounded up.

    Returns:
        ``(K, C, size, size)``. Samples more than one cell outside the feature map are 0. With ``samples=0``, regions
        of zero height or width are 0.
    """
    if not len(rois):
        return features[:0, :, :1, :1].expand(-1, -1, size, size)
    if features.device.type != "cpu" and not modes.transformed():
        pooled: Tensor = vision.roi_align(features, rois, size, scale, samples, aligned=True)
        return pooled
    count, (_, channels, height, width) = len(rois), features.shape
    boxes = rois[:, 1:].detach().nan_to_num(0)  # of a diverged network; its loss shows it
    left, top, right, bottom = (boxes * scale - 0.5).to(features.dtype).unbind(1)
    y = _axis_weights(top, bottom, size, height, samples)
    x = _axis_weights(left, right, size, width, samples)

    # A bin reads every combination of its rows and columns. Their number differs between regions, so the cells of all
    # bins are concatenated.
    cells = (y.cells * x.cells).repeat_interleave(size * size)
    start = cells.cumsum(0) - cells
    bin_ = torch.arange(len(cells), device=rois.device).repeat_interleave(cells)
    offset = torch.arange(len(bin_), device=rois.device) - start[bin_]
    region, row, column = bin_ // (size * size), bin_ // size % size, bin_ % size
    i, j = offset // x.cells[region], offset % x.cells[region]
    weight = y.weight[region, row, i] * x.weight[region, column, j]
    image_row = rois[:, 0].long()[region] * height + (y.first[region, row] + i).clamp(max=height - 1)
    cell = image_row * width + (x.first[region, column] + j).clamp(max=width - 1)

    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    bins = weighted_rows(rows, cell, weight, start)
    return bins.view(count, size, size, channels).permute(0, 3, 1, 2)


class _AxisWeights(NamedTuple):
    """The cells that the bins of each region read along one axis, and their weights.

    Attributes:
        first: ``(K, size)``, the first cell of each bin.
        cells: ``(K,)``, number of cells that a bin reads; those outside the feature map have weight 0.
        weight: ``(K, size, max(cells))``.
    """

    first: Tensor
    cells: Tensor
    weight: Tensor


def _axis_weights(low: Tensor, high: Tensor, size: int, length: int, samples: int) -> _AxisWeights:
    """Weights for regions from ``low`` to ``high``, ``(K,)`` in cells, along an axis of ``length`` cells."""
    extent = (high - low).clamp(min=0) / size  # of a bin
    per_bin = torch.full_like(extent, samples) if samples else extent.ceil()
    step = extent / per_bin.clamp(min=1)
    sample = torch.arange(int(per_bin.max()), device=low.device)
    bins = low[:, None] + extent[:, None] * torch.arange(size, device=low.device)
    positions = bins[..., None] + step[:, None, None] * (sample + 0.5)  # (K, size, samples)
    counts = (sample < per_bin[:, None, None]) & (positions >= -1) & (positions <= length)
    sample_weight = counts / per_bin.clamp(min=1)[:, None, None]

    positions = positions.clamp(0, length - 1)
    first = (bins + step[:, None] / 2).clamp(0, length - 1).floor()
    count = (step * (per_bin - 1)).clamp(min=0).ceil().long() + 2  # from the first sample's cell to beyond the last's
    cell = first[..., None] + torch.arange(int(count.max()), device=low.device)  # (K, size, cells)
    interpolation = (1 - (positions[..., None, :] - cell[..., None]).abs()).clamp(min=0)  # (K, size, cells, samples)
    return _AxisWeights(first.long(), count, (interpolation * sample_weight[..., None, :]).sum(-1))
