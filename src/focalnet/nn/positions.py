"""Sine position encodings of cells and boxes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from focalnet.ops import modes

_EPS = 1e-6  # DETR's value: positions end just below 2 pi


def sine_positions(
    height: int, width: int, channels: int, *, temperature: float = 10000.0, device: torch.device | None = None
) -> Tensor:
    """Encodes the cells of a feature map by sines and cosines, ``(height * width, channels)``, row by row.

    As in DETR (appendix): rows and columns count from 1 and are scaled to end at 2 pi.

    Args:
        height: height of the feature map.
        width: width of the feature map.
        channels: a multiple of 4; the first half encodes the row, the second the column.
        temperature: the longest wavelength, in units of 2 pi.
        device: device of the result.
    """
    half = channels // 2
    powers = torch.arange(half, device=device).div(2, rounding_mode="floor") * (2 / half)
    wavelengths = temperature**powers

    def encode(count: int) -> Tensor:
        step: Any = 2 * math.pi / (count + _EPS)
        if modes.exporting():  # ONNX has no product with a number that depends on a shape
            total = torch.full((), count, dtype=torch.float64, device=device)
            step = (2 * math.pi / (total + _EPS)).float()
        positions = torch.arange(1, count + 1, device=device) * step
        angle = positions[:, None] / wavelengths
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def masked_sine_positions(
    padding_BHW: Tensor, channels: int, *, temperatures: tuple[float, float], offset: float = 0.0
) -> Tensor:
    """``sine_positions`` for images padded right and below, ``(B, H * W, channels)``, row by row.

    The last row and column of each image are at 2 pi, as are all cells of the padding.

    Args:
        padding_BHW: true at cells of the padding.
        channels: a multiple of 4; the first half encodes the row, the second the column.
        temperatures: temperatures for rows and columns, see ``sine_positions``.
        offset: added to the index of each row and column.
    """
    inside = (~padding_BHW).float()
    encoded = []
    for axis, temperature in zip((1, 2), temperatures, strict=True):
        count = inside.cumsum(axis)
        positions = (count + offset) / (count.narrow(axis, count.shape[axis] - 1, 1) + _EPS) * (2 * math.pi)
        encoded.append(_sines(positions, channels // 2, temperature))
    return torch.cat(encoded, -1).flatten(1, 2)


def box_sines(boxes: Tensor, channels: int, *, temperature: float = 10000.0) -> Tensor:
    """Encodes y, x, width and height, in this order, by sines and cosines (DAB-DETR, section 3.3).

    Args:
        boxes: ``(..., 4)``: center x and y, width, height, relative to the image's size; or ``(..., 2)``, x and y only.
        channels: channels of each coordinate, even.
        temperature: the longest wavelength, in units of the image's size.

    Returns:
        ``(..., 4 * channels)``, or ``(..., 2 * channels)``.
    """
    sines = [_sines(value, channels, temperature) for value in (boxes * (2 * math.pi)).unbind(-1)]
    return torch.cat([sines[1], sines[0], *sines[2:]], -1)


def _sines(angles: Tensor, channels: int, temperature: float) -> Tensor:
    """Alternating sines and cosines of increasing wavelengths, ``(..., channels)``."""
    powers = torch.arange(channels, device=angles.device).div(2, rounding_mode="floor") * (2 / channels)
    angle = angles[..., None] / temperature**powers
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)
