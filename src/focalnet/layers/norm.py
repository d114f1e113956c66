"""Layer norm of channels-last maps."""

from __future__ import annotations

import torch
from torch import nn

from focalnet import ops
from focalnet.layers.untouched import untouched


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` of the last axis, with weight and bias, through ``ops.layer_norm``."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return ops.layer_norm(input, self.weight, self.bias, self.eps)


def fork_and_norm(norm: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` and ``norm(x)``, for a residual branch; see ``ops.fork_and_norm``."""
    if type(norm) is LayerNorm and untouched(norm):
        return ops.fork_and_norm(x, norm.weight, norm.bias, norm.eps)
    return x, norm(x)
