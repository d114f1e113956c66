"""Where a cell of a map, or a box, is, as a vector."""

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


def masked_sine_positions(padding_BHW: Tensor, channels: int, *, temperatures: tuple[float, float]) -> Tensor:
    """``sine_positions`` of images that are padded right and below, ``(B, H * W, channels)``, row by row.

    Rows and columns count within the image, so that its last ones are at 2 pi; those of the padding are at 2 pi, too.

    Args:
        padding_BHW: true at cells beyond the image.
        channels: a multiple of 4; half for the row, half for the column.
        temperatures: of rows and columns.
    """
    inside = (~padding_BHW).float()
    encoded = []
    for axis, temperature in zip((1, 2), temperatures, strict=True):
        count = inside.cumsum(axis)
        place = count / (count.narrow(axis, count.shape[axis] - 1, 1) + _EPS) * (2 * math.pi)
        encoded.append(_sines(place, channels // 2, temperature))
    return torch.cat(encoded, -1).flatten(1, 2)


def box_sines(boxes: Tensor, channels: int, *, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of y, x, width and height, in this order (DAB-DETR, section 3.3): ``(..., 4 * channels)``.

    Args:
        boxes: ``(..., 4)``: center x and y, width, height, in units of the image; or ``(..., 2)``, x and y alone.
        channels: of each number, even.
        temperature: the longest wavelength, in units of the image.
    """
    sines = [_sines(value, channels, temperature) for value in (boxes * (2 * math.pi)).unbind(-1)]
    return torch.cat([sines[1], sines[0], *sines[2:]], -1)


def _sines(angles: Tensor, channels: int, temperature: float) -> Tensor:
    """``(..., channels)``: sine and cosine in turn, of ever longer wavelengths."""
    powers = torch.arange(channels, device=angles.device).div(2, rounding_mode="floor") * (2 / channels)
    angle = angles[..., None] / temperature**powers
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)
