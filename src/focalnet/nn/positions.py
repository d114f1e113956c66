"""Where a cell of a map is, as a vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPS = 1e-6  # the published one: positions end just below 2 pi


def sine_positions(
    height: int, width: int, channels: int, *, temperature: float = 10000.0, device: torch.device | None = None
) -> Tensor:
    """Sines and cosines of the row, then of the column, ``(height * width, channels)``, row by row (DETR, appendix).

    Rows and columns count from 1 and are scaled to end at 2 pi.

    Args:
        height: of the map.
        width: of the map.
        channels: a multiple of 4; half for the row, half for the column.
        temperature: the longest wavelength, in units of 2 pi.
        device: of the result.
    """
    half = channels // 2
    powers = torch.arange(half, device=device).div(2, rounding_mode="floor") * (2 / half)
    wavelengths = temperature**powers

    def encode(count: int) -> Tensor:
        place = torch.arange(1, count + 1, device=device) * (2 * math.pi / (count + _EPS))
        angle = place[:, None] / wavelengths
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)
