"""What dense heads are made of: a convolution with what usually follows it, and one that doubles a map's sides."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from focalnet import ops

Norm = Literal["bn", "gn"]


class ConvNorm(nn.Module):
    """Convolution, norm if any, ReLU if wanted; ``(B, C, H, W)`` to ``(B, channels, H', W')``.

    The parts are called ``conv`` and ``bn`` or ``gn``, as in OpenMMLab's checkpoints.

    Args:
        in_channels: of the input.
        channels: of the output.
        kernel: side of the kernel; padding keeps the size at stride 1.
        stride: of the convolution.
        norm: batch norm, group norm of 32 groups, or None; the convolution has a bias only without.
        relu: whether a ReLU comes last.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel: int, *, stride: int = 1, norm: Norm | None = None, relu: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=norm is None)
        self.norm_name, self.relu = norm, relu
        if norm is not None:
            self.add_module(norm, nn.BatchNorm2d(channels) if norm == "bn" else nn.GroupNorm(32, channels))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.after_conv(self.conv(x_BCHW))

    def after_conv(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Norm and ReLU alone, for a convolution that was computed in another way."""
        x = x_BCHW
        if self.norm_name is not None:
            x = self.get_submodule(self.norm_name)(x)
        return x.relu() if self.relu else x


class Doubling(nn.ConvTranspose2d):
    """A transposed convolution of 2x2 with stride 2: ``(B, C, H, W)`` to ``(B, channels, 2H, 2W)``.

    Its outputs do not overlap, so that it is a matrix product, which is several times faster on a CPU.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, 2, stride=2)

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        batch, channels, height, width = input.shape
        weight, bias = self.weight.permute(2, 3, 1, 0), self.bias  # (2, 2, out, in)
        assert bias is not None
        x = ops.linear(input.permute(0, 2, 3, 1), weight.reshape(-1, channels), bias.repeat(4))
        x = x.view(batch, height, width, 2, 2, self.out_channels).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)
