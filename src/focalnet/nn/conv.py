"""A convolution with what usually follows it, as the dense heads are made of."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

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
        return x.relu_() if self.relu else x  # nobody else has it: neither convolutions nor norms keep their output
