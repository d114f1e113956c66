"""A convolution with optional norm and ReLU, for necks and heads."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Norm = Literal["bn", "gn"]


def no_single_cells(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Pads sides of one cell by one zero, for a 3x3 convolution of stride 2 and padding 1.

    This does not change the output. Without it, PyTorch (2.14, oneDNN) in bfloat16 on the CPU leaves the gradients of
    kernel weights that only see padding uninitialized, possibly NaN.
    """
    if isinstance(x_BCHW, torch.fx.Proxy):  # a graph of torch.fx is the same for all sizes
        return x_BCHW
    height, width = x_BCHW.shape[2:]
    reduced = x_BCHW.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if not (x_BCHW.is_cpu and torch.is_grad_enabled() and reduced) or min(height, width) > 1:
        return x_BCHW
    return F.pad(x_BCHW, (0, int(width == 1), 0, int(height == 1)))


class ConvNorm(nn.Module):
    """Convolution, optional norm, optional ReLU; ``(B, C, H, W)`` to ``(B, channels, H', W')``.

    The submodules are called ``conv`` and ``bn`` or ``gn``, as in OpenMMLab's checkpoints.

    Args:
        in_channels: input channels.
        channels: output channels.
        kernel: kernel size; the padding keeps the size at stride 1.
        stride: stride of the convolution.
        norm: batch norm, group norm with 32 groups, or None; only without a norm the convolution has a bias.
        relu: whether to apply a ReLU at the end.
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
        strided = getattr(self.conv, "stride", None) == (2, 2)  # what has replaced it may have none
        x = no_single_cells(x_BCHW) if strided else x_BCHW
        return self.after_conv(self.conv(x))

    def after_conv(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Applies norm and ReLU only, for a convolution that was computed elsewhere."""
        x = x_BCHW
        if self.norm_name is not None:
            x = self.get_submodule(self.norm_name)(x)
        return x.relu() if self.relu else x  # not in place: a hook may have kept the norm's output
