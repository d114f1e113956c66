"""Linear layers of channels-last maps, on the fastest matrix product of this machine.

The sum of a residual branch may be made a part of its last product: ``plus`` is what is added to.
"""

from __future__ import annotations

from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import nn

from focalnet import ops
from focalnet.layers.untouched import untouched


class Linear(nn.Linear):
    """``nn.Linear`` through ``ops.linear``."""

    packed: ops.PackedWeight | None = None  # this and the next are set by ``focalnet.optimize``
    recompute = False

    def forward(self, input: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        return ops.linear(input, self.weight, self.bias, plus=plus, packed=self.packed)


def add_to(plus: torch.Tensor | None, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``plus + layer(x)``, the sum as a part of the layer where nothing else happens in it."""
    if _is_itself(layer):
        return layer.forward(x, plus)
    out: torch.Tensor = layer(x)
    return out if plus is None else plus + out


def linear_of_product(
    layer: nn.Module, a: torch.Tensor, b: torch.Tensor, plus: torch.Tensor | None = None
) -> torch.Tensor:
    """``plus + layer(a * b)``; a layer that recomputes keeps only the two for the backward pass."""
    if _is_itself(layer) and layer.recompute and torch.is_grad_enabled():
        return ops.linear_of_product(a, b, layer.weight, layer.bias, plus=plus)
    return add_to(plus, layer, a * b)


def _is_itself(layer: nn.Module) -> TypeGuard[Linear]:
    """Whether nothing else happens when it is called: no hook, no adapter in its place."""
    return type(layer) is Linear and untouched(layer)


class PointwiseConv(nn.Module):
    """A 1x1 convolution of channels-last maps: a matrix product, with no change of memory layout.

    Its weight keeps the convolution's shape ``(out, in, 1, 1)``, as published checkpoints have it.
    """

    packed: ops.PackedWeight | None = None

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        like = nn.Conv2d(in_channels, out_channels, 1)  # for its initialisation
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        return ops.linear(x_BHWC, self.weight.flatten(1), self.bias, packed=self.packed)


class Mlp(nn.Module):
    """Two linear layers with GELU (exact) between; dropout after each."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x_BHWC: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        fc1, fc2 = self.fc1, self.fc2
        if self.training and self.drop.p > 0:
            out = cast(torch.Tensor, self.drop(fc2(self.drop(F.gelu(fc1(x_BHWC))))))
            return out if plus is None else plus + out
        if _is_itself(fc1) and _is_itself(fc2):
            weights = fc1.weight, fc1.bias, fc2.weight, fc2.bias
            return ops.mlp(x_BHWC, *weights, plus=plus, packed=(fc1.packed, fc2.packed), recompute=fc2.recompute)
        return add_to(plus, fc2, F.gelu(fc1(x_BHWC)))
