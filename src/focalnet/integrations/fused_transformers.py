"""transformers' focal modulation and MLP on our kernels: channels-last throughout, without its two copies."""

# mypy: disable-error-code="no-any-return, attr-defined, no-untyped-call"
# The classes below are only partly typed.

from __future__ import annotations

import torch
from transformers.models.focalnet.modeling_focalnet import FocalNetLayer, FocalNetMlp, FocalNetModulation

from focalnet import ops
from focalnet.integrations.pointwise import mlp_weights
from focalnet.integrations.untouched import is_traced, kernels


class FusedFocalNetModulation(FocalNetModulation):
    """Takes the place of transformers' class on existing modules: same submodules, same parameters, same output."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        weights = None if is_traced(hidden_state) else kernels(self.focal_layers, self.activation)
        if weights is None:
            return super().forward(hidden_state)
        split = (self.dim, self.dim, self.focal_level + 1)
        query, context, gates = self.projection_in(hidden_state).split(split, dim=-1)
        aggregated = ops.focal_context(context, gates, weights)
        if self.normalize_modulator:
            aggregated = aggregated / (self.focal_level + 1)
        modulated = query * self.projection_context(aggregated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.use_post_layernorm_in_modulation:
            modulated = self.layernorm(modulated)
        return self.projection_dropout(self.projection_out(modulated))


class FusedFocalNetMlp(FocalNetMlp):
    """Takes the place of transformers' class."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        weights = None
        if not is_traced(hidden_state):
            weights = mlp_weights(self.fc1, self.activation, (self.drop,), self.fc2)
        if weights is None:
            return super().forward(hidden_state)
        return self.drop(ops.mlp(hidden_state, *weights))


ROOTS = (FocalNetModulation, FocalNetLayer)
FUSED = {FocalNetModulation: FusedFocalNetModulation, FocalNetMlp: FusedFocalNetMlp}
