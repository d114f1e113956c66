"""Pointwise layers of other libraries on the fastest matrix product there is; see ``ops/pointwise.py``."""

# mypy: disable-error-code="no-any-return, attr-defined"
# PyTorch's modules and torch.jit are only partly typed.

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from focalnet import ops
from focalnet.integrations.untouched import does_nothing, is_gelu, is_plain, is_traced, untouched


class PointwiseLinear(nn.Linear):
    """Takes the place of ``nn.Linear`` on existing layers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product = ops.linear if _here(input, self.weight) else F.linear
        return product(input, self.weight, self.bias)


class PointwiseConv2d(nn.Conv2d):
    """Takes the place of ``nn.Conv2d`` on existing 1x1 convolutions; its maps are channels-last in memory."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():  # a script must run without this library
            return self._conv_forward(input, self.weight, self.bias)
        return self._product(input)

    @torch.jit.unused
    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if not _here(x, self.weight):
            return self._conv_forward(x, self.weight, self.bias)
        return ops.linear(x.movedim(-3, -1), self.weight.flatten(1), self.bias).movedim(-1, -3)


def _here(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the product may be chosen by us: compilers choose for themselves, best when left with the original."""
    return not is_traced(x) and not torch.compiler.is_compiling() and is_plain(weight)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: PointwiseLinear, nn.Conv2d: PointwiseConv2d}


def replacement(layer: nn.Module) -> type[nn.Module] | None:
    """The class of this file for a pointwise layer that is exactly PyTorch's own, or None."""
    if type(layer) is nn.Conv2d and not _is_pointwise(layer):
        return None
    return LAYERS.get(type(layer))


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def mlp_weights(
    fc1: nn.Module, act: nn.Module, between: Iterable[nn.Module], fc2: nn.Module
) -> list[torch.Tensor] | None:
    """Weights and biases of both layers, for ``ops.mlp``; None where the layers must be called themselves.

    Args:
        fc1: the first pointwise layer.
        act: its activation.
        between: what else stands between the two.
        fc2: the second pointwise layer.
    """
    if torch.compiler.is_compiling() or not is_gelu(act) or not all(does_nothing(module) for module in between):
        return None
    tensors: list[torch.Tensor] = []
    for layer in (fc1, fc2):
        if not isinstance(layer, PointwiseLinear | PointwiseConv2d) or type(layer) not in LAYERS.values():
            return None
        if not (untouched(layer) and is_plain(layer.weight) and layer.bias is not None):
            return None
        tensors += layer.weight.flatten(1), layer.bias
    return tensors
