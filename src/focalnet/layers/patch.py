"""Patch embedding: the stem, and the down-sampling between stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from focalnet import ops
from focalnet.layers.norm import LayerNorm
from focalnet.layers.untouched import untouched


class PatchEmbed(nn.Module):
    """A strided convolution and a layer norm, from ``(B, C, H, W)`` to ``(B, H / s, W / s, dim)``.

    Args:
        in_chans: input channels.
        dim: output channels.
        stride: patch size s.
        kernel: kernel size; the stride itself for non-overlapping patches.
        padding: symmetric zero padding of the convolution.
        norm: whether a layer norm follows.
        pad_to_stride: zero-pad right and bottom to a multiple of the stride first (the detection
            backbones of the official release); otherwise odd rows and columns are dropped.
    """

    packed: ops.PackedWeight | None = None  # set by ``focalnet.optimize``

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
        self.stride, self.pad_to_stride = stride, pad_to_stride
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding)
        self.norm = LayerNorm(dim) if norm else None

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x = x_BCHW
        if self.pad_to_stride:
            x = F.pad(x, (0, -x.shape[3] % self.stride, 0, -x.shape[2] % self.stride))
        # Channels-last in, channels-last out: the permutation below is then a view, not a copy. (vmap does not know
        # the memory format of that name.)
        channels_last = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        y_BHWC = self._project(channels_last).permute(0, 2, 3, 1)
        if self.norm is not None:
            y_BHWC = self.norm(y_BHWC)
        return y_BHWC

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        proj = self.proj
        own = type(proj) is nn.Conv2d and untouched(proj)
        if self.packed is None or not own or torch.is_grad_enabled() or torch.compiler.is_compiling():
            out: torch.Tensor = proj(x)
            return out
        padding = int(proj.padding[0])
        return ops.patches(x, proj.weight, proj.bias, stride=self.stride, padding=padding, packed=self.packed)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of the map that an input of ``height`` x ``width`` becomes."""
        stride, kernel, padding = self.stride, self.proj.kernel_size[0], int(self.proj.padding[0])

        def steps(n: int) -> int:
            n += -n % stride if self.pad_to_stride else 0
            return (n + 2 * padding - kernel) // stride + 1

        return steps(height), steps(width)
