"""A 3x3 convolution of maps of several sizes, without bringing the coarse ones to the size of the finest.

B batch, H and W of the finest map, h and w of a coarse one, O channels of the output, k a row or column of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.kernels.matmul import linear


def resized_conv(maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    """The 3x3 convolution of all maps, each resized to the first by bilinear interpolation, one after the other.

    Equals ``conv2d(cat([maps[0], resized(maps[1]), ...], 1), weight, padding=1)`` up to rounding. Resizing and taking
    a neighbour are linear and see no channels; a tap of the kernel sees nothing but channels. So the taps come first,
    on the coarse map, which for half the side is a quarter of the products; then rows and columns of their results
    are added up where they belong.

    Args:
        maps: ``(B, C_i, h_i, w_i)``, channels last in memory.
        weight: ``(O, sum of C_i, 3, 3)``.

    Returns:
        ``(B, O, H, W)`` with H and W of the first map, channels last in memory.
    """
    finest, *coarse = maps
    (batch, _, height, width), channels = finest.shape, len(weight)
    own, *weights = torch.split(weight, [x.shape[1] for x in maps], 1)
    out = F.conv2d(finest, own, padding=1)
    places, rows = [], []
    for x_BChw, taps_OCkk in zip(coarse, weights, strict=True):
        x_BhwC = x_BChw.permute(0, 2, 3, 1)
        h, w = x_BhwC.shape[1:3]
        across = _places(w, width, like=out).permute(1, 2, 0).reshape(width, w * 3)
        for k in range(3):
            taps = taps_OCkk[:, :, k].permute(2, 0, 1).flatten(0, 1)
            products = linear(x_BhwC, taps).view(batch * h, w * 3, channels)
            rows.append((across @ products).view(batch, h, width * channels))
        places.append(_places(h, height, like=out).movedim(1, 0).flatten(1))
    if rows:
        added = torch.cat(places, 1) @ torch.cat(rows, 1)
        out = out + added.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return out


def _places(small: int, large: int, like: Tensor) -> Tensor:
    """``(k, large, small)``: how much of each small place tap k sees at each large one; it sees zeros outside."""
    one_hot = torch.eye(small, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))[None]
    resized = F.interpolate(one_hot, size=large, mode="linear", align_corners=False)[0].T
    padded = F.pad(resized, (0, 0, 1, 1))
    return torch.stack([padded[k : k + large] for k in range(3)]).to(like)
