"""Patch embedding: the stem, and the downsampling between stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from focalnet.errors import InputError
from focalnet.nn.conv import no_single_cells


class PatchEmbed(nn.Module):
    """A strided convolution and a layer norm, from ``(B, C, H, W)`` to ``(B, H / s, W / s, dim)``.

    Args:
        in_chans: input channels.
        dim: output channels.
        stride: patch size s.
        kernel: kernel size; equal to the stride for non-overlapping patches.
        padding: symmetric zero padding of the convolution.
        norm: whether a layer norm follows.
        pad_to_stride: first zero-pad right and bottom to a multiple of the stride (the detection
            backbones of the official release); otherwise remaining rows and columns are dropped.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        stride: int,
        kernel: int,
        padding: int,
        norm: bool = True,
        pad_to_stride: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.kernel, self.padding, self.pad_to_stride = stride, kernel, padding, pad_to_stride
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim) if norm else None

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x = x_BCHW
        if type(x) in (torch.Tensor, nn.Parameter):
            self._check_dtype(x)
        if self.pad_to_stride:
            x = F.pad(x, (0, _missing(x.shape[3], self.stride), 0, _missing(x.shape[2], self.stride)))
        elif (self.kernel, self.stride, self.padding) == (3, 2, 1):
            x = no_single_cells(x)
        # With channels-last input the output is channels-last, and the permutation below is a view. (vmap does not
        # support torch.channels_last.)
        channels_last = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self._normalized(self._project(channels_last).permute(0, 2, 3, 1))

    def _check_dtype(self, x_BCHW: torch.Tensor) -> None:
        """Raises InputError where the convolution would refuse the dtype."""
        proj = self.proj
        if type(proj) is not nn.Conv2d or proj._forward_pre_hooks or type(proj.weight) is not nn.Parameter:
            return  # what has replaced it may take any dtype
        if x_BCHW.dtype != proj.weight.dtype and not torch.is_autocast_enabled(x_BCHW.device.type):
            given, weights = (str(dtype).removeprefix("torch.") for dtype in (x_BCHW.dtype, proj.weight.dtype))
            prepared = "" if x_BCHW.is_floating_point() else "; images are first normalized, as focalnet.Predictor does"
            raise InputError(f"the input of this FocalNet is {given}, its weights are {weights}{prepared}")

    def _project(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.proj(x_BCHW)
        return out

    def _normalized(self, y_BHWC: torch.Tensor) -> torch.Tensor:
        return y_BHWC if self.norm is None else self.norm(y_BHWC)

    @property
    def on_meta(self) -> bool:
        """Whether the weights are on the meta device, and nothing loads them when ``proj`` is called."""
        loaded_when_called = "forward" in vars(self.proj) or bool(self.proj._forward_pre_hooks)  # by accelerate
        weight = getattr(self.proj, "weight", None)  # of any module that has replaced it
        return isinstance(weight, torch.Tensor) and weight.is_meta and not loaded_when_called

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the feature map for an input of ``height`` x ``width``."""
        stride, kernel, padding = self.stride, self.kernel, self.padding

        def steps(n: int) -> int:
            n += -n % stride if self.pad_to_stride else 0
            return (n + 2 * padding - kernel) // stride + 1

        return steps(height), steps(width)


def _missing(side: int, stride: int) -> int:
    """Cells that a side lacks to a multiple of the stride; written so that exporters can simplify it."""
    return stride * ((side - 1) // stride + 1) - side
