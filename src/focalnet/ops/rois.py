"""From a pyramid of maps to the features of regions, and from region masks to image masks and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision.ops
from torch import Tensor

from focalnet.ops.roi_align import roi_align

_FINEST = 14  # regions below 2 * 14 cells of the finest map are pooled from it; 56 pixels at stride 4
_CHUNK = 1 << 22  # pixels of masks that are held in floating point at once: what a cache holds is pasted fastest


def boxes_to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes ``(n_i, 4)`` of each image as regions ``(K, 5)``: the image's index in the batch, then the box."""
    return torch.cat([torch.cat([b.new_full((len(b), 1), i), b], 1) for i, b in enumerate(boxes)])


def levels(boxes: Tensor, finest_stride: int, count: int) -> Tensor:
    """The pyramid level of each box, by its size (Lin et al. 2017, equation 1): ``(N,)``, 0 is the finest."""
    size = (boxes[:, 2:] - boxes[:, :2]).prod(-1).sqrt()
    level = (size / (_FINEST * finest_stride) + 1e-6).log2().floor()
    return level.long().clamp(0, count - 1)  # in this order, boxes that are not numbers have one, too


def pool(maps: Sequence[Tensor], strides: Sequence[int], rois: Tensor, size: int, samples: int = 0) -> Tensor:
    """Features of regions by RoIAlign, each from the level of its size; in float32.

    Args:
        maps: ``(B, C, H, W)``, finest first.
        strides: pixels per cell of each map.
        rois: ``(K, 5)``: index in the batch, box.
        size: side of the grid.
        samples: sampled points per bin and axis; 0 for as many as the region has cells in a bin.

    Returns:
        ``(K, C, size, size)``.
    """
    level = levels(rois[:, 1:], strides[0], len(maps))
    pooled = [
        roi_align(features.float(), rois[level == i], size, 1 / stride, samples)
        for i, (features, stride) in enumerate(zip(maps, strides, strict=True))
    ]
    return torch.cat(pooled)[level.argsort(stable=True).argsort()]


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Puts region masks into an image: ``(N, height, width)``, bool.

    Args:
        masks: ``(N, m, m)``, probabilities on a grid over the box.
        boxes: ``(N, 4)``, in pixels of the image.
        size: height and width of the image.
        threshold: a pixel is in the mask from this interpolated probability on.
    """
    height, width = size
    out = torch.empty((len(masks), height, width), dtype=torch.bool, device=masks.device)
    chunk = max(1, _CHUNK // max(1, height * width))
    for i in range(0, len(masks), chunk):
        torch.ge(paste_masks_soft(masks[i : i + chunk], boxes[i : i + chunk], size), threshold, out=out[i : i + chunk])
    return out


def paste_masks_soft(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of region masks at the image's pixel centres, ``(N, height, width)``.

    Interpolation is separable: two matrix products, with the weights of each mask row at each pixel row and of each
    mask column at each pixel column. Outside the box masks are zero; a box without a size has none.
    """
    with torch.autocast(masks.device.type, enabled=False):
        rows = _interpolation(boxes[:, 1], boxes[:, 3], size[0], masks.shape[1])
        columns = _interpolation(boxes[:, 0], boxes[:, 2], size[1], masks.shape[2])
        soft: Tensor = rows @ masks.float() @ columns.transpose(1, 2)
        return soft


def mask_targets(masks: Tensor, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What a mask head is to predict for boxes: their object's mask on a grid over the box, 0 or 1.

    Args:
        masks: ``(G, H, W)``, bool.
        index: ``(N,)``, the object of each box.
        boxes: ``(N, 4)``.
        size: side of the grid.

    Returns:
        ``(N, size, size)``, float32.
    """
    rois = torch.cat([index[:, None].to(boxes), boxes], 1)
    # torchvision's kernel: with one channel and no gradient it is the faster one on a CPU, too.
    covered = torchvision.ops.roi_align(masks[:, None].to(boxes), rois, size, 1.0, 0, aligned=True)
    wanted: Tensor = (covered[:, 0] >= 0.5).to(boxes)
    return wanted


def _interpolation(low: Tensor, high: Tensor, pixels: int, cells: int) -> Tensor:
    """Weights ``(N, pixels, cells)`` of the cells between ``low`` and ``high`` at the pixel centres."""
    pixel = torch.arange(pixels, device=low.device, dtype=torch.float32) + 0.5
    low, high = low.float()[:, None], high.float()[:, None]
    place = ((pixel - low) / (high - low) * cells - 0.5).nan_to_num(-2.0, -2.0, -2.0)  # -2: beyond every cell
    cell = torch.arange(cells, device=low.device, dtype=torch.float32)
    return (1 - (place[..., None] - cell).abs()).clamp(min=0)
