"""Pyramid pooling (Zhao et al., CVPR 2017, arXiv 1612.01105): averages of a feature map at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from focalnet.nn.conv import ConvNorm


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
        return [branch(x_BCHW) for branch in self]
