"""timm's focal modulation and MLP on our kernels.

timm's shapes are channels-first, but its layer norms leave channels-last memory behind: the permutations
here are views.
"""

# mypy: disable-error-code="no-any-return, attr-defined, no-untyped-call"
# The classes below are only partly typed.

from __future__ import annotations

import torch
from timm.layers import Mlp
from timm.models.focalnet import FocalModulation, FocalNetBlock

from focalnet import ops
from focalnet.integrations.pointwise import mlp_weights
from focalnet.integrations.untouched import is_traced, kernels, renamed


class FusedFocalModulation(FocalModulation):
    """Takes the place of timm's class on existing modules: same submodules, same parameters, same output."""

    original = renamed(FocalModulation.forward, "original")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():  # a script must run without this library
            return self.original(x)
        return self._fused(x)

    @torch.jit.unused
    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        weights = None if is_traced(x) else kernels(self.focal_layers, self.act)
        if weights is None:
            return self.original(x)
        x = x.contiguous(memory_format=torch.channels_last)
        query, context, gates = self.f(x).split(self.input_split, dim=1)
        aggregated = ops.focal_context(context.permute(0, 2, 3, 1), gates.permute(0, 2, 3, 1), weights)
        if self.normalize_modulator:
            aggregated = aggregated / (self.focal_level + 1)
        modulated = self.norm(query * self.h(aggregated.permute(0, 3, 1, 2)))
        return self.proj_drop(self.proj(modulated))


class FusedMlp(Mlp):
    """Takes the place of timm's class in FocalNet blocks."""

    original = renamed(Mlp.forward, "original")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self.original(x)
        return self._fused(x)

    @torch.jit.unused
    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        weights = None if is_traced(x) else mlp_weights(self.fc1, self.act, (self.drop1, self.norm), self.fc2)
        if weights is None:
            return self.original(x)
        return self.drop2(ops.mlp(x.permute(0, 2, 3, 1), *weights).permute(0, 3, 1, 2))


ROOTS = (FocalModulation, FocalNetBlock)
FUSED: dict[type[torch.nn.Module], type[torch.nn.Module]] = {FocalModulation: FusedFocalModulation, Mlp: FusedMlp}
