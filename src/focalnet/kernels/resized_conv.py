"""A 3x3 convolution of feature maps of several sizes, without resizing the coarse ones to the size of the finest.

Shapes: B batch, H and W of the finest feature map, h and w of a coarse one, O output channels, k a row or column of the
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.kernels.matmul import linear
from focalnet.ops import modes


def resized_conv(features: Sequence[Tensor], weight: Tensor) -> Tensor:
    """The 3x3 convolution of the concatenated feature maps, each resized bilinearly to the size of the first.

    Equals ``conv2d(cat([features[0], resized(features[1]), ...], 1), weight, padding=1)`` up to rounding. Resizing and
    shifting are linear operations over pixels, and each kernel weight is a linear map over channels, so they commute.
    The kernel weights are applied first, to the coarse feature map: at half the side this needs a quarter of the
    multiplications. Their results are then resized, shifted and summed.

    Args:
        features: ``(B, C_i, h_i, w_i)``, channels-last in memory.
        weight: ``(O, sum of C_i, 3, 3)``.

    Returns:
        ``(B, O, H, W)`` with H and W of the first feature map, channels-last in memory.
    """
    finest, *coarse = features
    if modes.exporting():
        resized = [F.interpolate(x, size=finest.shape[2:], mode="bilinear", align_corners=False) for x in coarse]
        return F.conv2d(torch.cat([finest, *resized], 1), weight, padding=1)
    (batch, _, height, width), channels = finest.shape, len(weight)
    finest_weight, *weights = torch.split(weight, [x.shape[1] for x in features], 1)
    out = F.conv2d(finest, finest_weight, padding=1)
    vertical, rows = [], []
    for x_BChw, weight_OCkk in zip(coarse, weights, strict=True):
        x_BhwC = x_BChw.permute(0, 2, 3, 1)
        h, w = x_BhwC.shape[1:3]
        horizontal = _resize_matrices(w, width, like=out).permute(1, 2, 0).reshape(width, w * 3)
        for k in range(3):
            row_weights = weight_OCkk[:, :, k].permute(2, 0, 1).flatten(0, 1)
            products = linear(x_BhwC, row_weights).view(batch * h, w * 3, channels)
            rows.append((horizontal @ products).view(batch, h, width * channels))
        vertical.append(_resize_matrices(h, height, like=out).movedim(1, 0).flatten(1))
    if rows:
        summed = torch.cat(vertical, 1) @ torch.cat(rows, 1)
        out = out + summed.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return out


def _resize_matrices(small: int, large: int, like: Tensor) -> Tensor:
    """Matrices ``(k, large, small)`` that resize a row of ``small`` cells to ``large`` and shift it by k - 1."""
    one_hot = torch.eye(small, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))[None]
    resized = F.interpolate(one_hot, size=large, mode="linear", align_corners=False)[0].T
    padded = F.pad(resized, (0, 0, 1, 1))
    return torch.stack([padded[k : k + large] for k in range(3)]).to(like)
