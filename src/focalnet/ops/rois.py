"""RoI pooling from a feature pyramid, pasting of region masks into images, and mask targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from focalnet.ops import modes, vision
from focalnet.ops.roi_align import roi_align

FINEST_CELLS = 14  # regions below 2 * 14 cells of the finest level, 112 pixels at stride 4, are pooled from it
_CHUNK = 1 << 22  # mask pixels held in float32 at once; fastest if they fit a cache


def boxes_to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Converts boxes ``(n_i, 4)`` of each image to RoIs ``(K, 5)``: index in the batch, then the box."""
    return torch.cat([torch.cat([b.new_full((len(b), 1), i), b], 1) for i, b in enumerate(boxes)])


def batch_to_rois(boxes: Tensor) -> Tensor:
    """``boxes_to_rois`` of as many boxes for each image, ``(B, n, 4)``."""
    image = torch.arange(boxes.shape[0], device=boxes.device).to(boxes)[:, None, None]
    return torch.cat([image.expand(-1, boxes.shape[1], -1), boxes], 2).flatten(0, 1)


def levels(boxes: Tensor, finest_stride: int, count: int) -> Tensor:
    """The pyramid level of each box, by its size (Lin et al. 2017, equation 1): ``(N,)``, 0 is the finest.

    A box of 224 pixels, ImageNet's size, belongs to stride 16, where it has 14 cells; half the size is one level finer.
    So it is 14 cells at any stride, as in torchvision and detectron2. mmdet's ``finest_scale`` counts pixels and is 56
    whatever the stride; both agree at stride 4, that of all published networks, and ``rcnn/mmdet.py`` refuses others.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).prod(-1).sqrt()
    level = (size / (FINEST_CELLS * finest_stride) + 1e-6).log2().floor()
    return level.long().clamp(0, count - 1)  # the clamp also maps NaN boxes to a level


def pool(features: Sequence[Tensor], strides: Sequence[int], rois: Tensor, size: int, samples: int = 0) -> Tensor:
    """Pools regions by RoIAlign, each from the pyramid level for its size; computes in float32.

    Args:
        features: ``(B, C, H, W)`` of each level, finest first.
        strides: pixels per cell of each level.
        rois: ``(K, 5)``: index in the batch, box.
        size: bins per axis.
        samples: samples per axis of a bin; 0 for the bin's size in cells, rounded up.

    Returns:
        ``(K, C, size, size)``, of the type of the features.
    """
    level = levels(rois[:, 1:], strides[0], len(features))
    if modes.exporting():
        return _pool_all(features, strides, rois, level, size, samples)
    pooled = [
        roi_align(x.float(), rois[level == i], size, 1 / stride, samples)
        for i, (x, stride) in enumerate(zip(features, strides, strict=True))
    ]
    return torch.cat(pooled)[level.argsort(stable=True).argsort()].to(features[0].dtype)


def _pool_all(
    features: Sequence[Tensor], strides: Sequence[int], rois: Tensor, level: Tensor, size: int, samples: int
) -> Tensor:
    """``pool`` without a selection of regions by level: on other levels, regions are empty and cost nothing."""
    pooled = features[0].new_zeros(())
    for i, (x, stride) in enumerate(zip(features, strides, strict=True)):
        here = (level == i)[:, None]
        boxes = torch.cat([rois[:, :1], rois[:, 1:].where(here, 0.0)], 1)
        on_level = vision.roi_align(x.float(), boxes, size, 1 / stride, samples, aligned=True)
        pooled = torch.where(here[..., None, None], on_level, pooled)
    return pooled


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Pastes region masks into an image: ``(N, height, width)``, bool.

    Args:
        masks: ``(N, m, m)``, probabilities on a grid over the box.
        boxes: ``(N, 4)``, in pixels of the image.
        size: height and width of the image.
        threshold: a pixel is in the mask if its interpolated probability is at least this.
    """
    height, width = size
    out = torch.empty((len(masks), height, width), dtype=torch.bool, device=masks.device)
    chunk = max(1, _CHUNK // max(1, height * width))
    for i in range(0, len(masks), chunk):
        torch.ge(paste_masks_soft(masks[i : i + chunk], boxes[i : i + chunk], size), threshold, out=out[i : i + chunk])
    return out


def paste_masks_soft(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of region masks at the image's pixel centers, ``(N, height, width)``.

    Interpolation is separable, so it is two matrix products with the weights of mask rows at pixel rows and of mask
    columns at pixel columns. Masks are zero outside their box, and everywhere for a box of zero size.
    """
    with torch.autocast(masks.device.type, enabled=False):
        rows = _interpolation(boxes[:, 1], boxes[:, 3], size[0], masks.shape[1])
        columns = _interpolation(boxes[:, 0], boxes[:, 2], size[1], masks.shape[2])
        soft: Tensor = rows @ masks.float() @ columns.transpose(1, 2)
        return soft


def mask_targets(masks: Tensor, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Targets of a mask head: the mask of each box's object on a grid over the box, 0 or 1.

    Args:
        masks: ``(G, H, W)``, bool.
        index: ``(N,)``, index of each box's object.
        boxes: ``(N, 4)``.
        size: side of the grid.

    Returns:
        ``(N, size, size)``, float32.
    """
    rois = torch.cat([index[:, None].to(boxes), boxes], 1)
    # torchvision's kernel is faster for one channel without gradients, also on CPUs.
    coverage = vision.roi_align(masks[:, None].to(boxes), rois, size, 1.0, 0, aligned=True)
    targets: Tensor = (coverage[:, 0] >= 0.5).to(boxes)
    return targets


def _interpolation(low: Tensor, high: Tensor, pixels: int, cells: int) -> Tensor:
    """Bilinear weights ``(N, pixels, cells)``, at pixel centers, of cells that divide ``low`` to ``high``."""
    pixel = torch.arange(pixels, device=low.device, dtype=torch.float32) + 0.5
    low, high = low.float()[:, None], high.float()[:, None]
    position = ((pixel - low) / (high - low) * cells - 0.5).nan_to_num(-2.0, -2.0, -2.0)  # -2 is outside every cell
    cell = torch.arange(cells, device=low.device, dtype=torch.float32)
    return (1 - (position[..., None] - cell).abs()).clamp(min=0)
