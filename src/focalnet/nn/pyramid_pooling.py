"""Pyramid pooling (Zhao et al., CVPR 2017, arXiv 1612.01105): averages of a feature map at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from focalnet.nn.conv import ConvNorm
from focalnet.ops import modes


class PyramidPooling(nn.ModuleList):
    """Averages a feature map over grids of several sizes; each average has a 1x1 convolution, batch norm and ReLU.

    Args:
        in_channels: channels of the feature map.
        channels: channels of each output.
        scales: sides of the grids, in cells.
    """

    def __init__(self, in_channels: int, channels: int, scales: Sequence[int]) -> None:
        super().__init__(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNorm(in_channels, channels, 1, norm="bn", relu=True))
            for scale in scales
        )

    def forward(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Returns ``(B, channels, scale, scale)`` for each scale."""
        if not modes.exporting():
            return [branch(x_BCHW) for branch in self]
        return [branch[1](_averages(x_BCHW, branch[0].output_size)) for branch in self]  # type: ignore[index]


def _averages(x_BCHW: torch.Tensor, scale: int) -> torch.Tensor:
    """``AdaptiveAvgPool2d`` by matrix products, for feature maps whose size is not known when they are exported."""
    rows, columns = (_shares(side, scale, x_BCHW) for side in x_BCHW.shape[2:])
    return rows @ x_BCHW @ columns.T


def _shares(cells: int, scale: int, like: torch.Tensor) -> torch.Tensor:
    """Matrix ``(scale, cells)`` that averages a row of cells over ``scale`` bins, which may overlap."""
    bin_ = torch.arange(scale, device=like.device)[:, None]
    start, end = bin_ * cells // scale, -(-(bin_ + 1) * cells // scale)
    cell = torch.arange(cells, device=like.device)
    return ((cell >= start) & (cell < end)).to(like.dtype) / (end - start)
