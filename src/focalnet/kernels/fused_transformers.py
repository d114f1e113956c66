"""transformers' focal modulation and MLP with their operations fused; channels-last, which saves two copies."""

# mypy: disable-error-code="no-any-return, attr-defined, no-untyped-call"
# The classes below are only partly typed.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN
from transformers.models.focalnet.modeling_focalnet import FocalNetLayer, FocalNetMlp, FocalNetModulation

from focalnet.kernels import matmul, submodules
from focalnet.kernels.modulator import modulated_query, project

_GELU = type(ACT2FN["gelu"])


def _is_gelu(act: Any) -> bool:
    """Whether this is transformers' or PyTorch's exact GELU."""
    return submodules.is_gelu(act) or (submodules.unmodified(act, _GELU) and act.act is F.gelu)


class FusedFocalNetModulation(FocalNetModulation):
    """Replaces transformers' class on existing modules: same submodules, same parameters, same output."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        weights = None if submodules.observed(hidden_state) else self._weights()
        if weights is None:
            return super().forward(hidden_state)
        f, kernels, h, proj = weights
        submodules.check_devices(hidden_state, [*f, *kernels, *h, *proj])
        linear = F.linear if torch.compiler.is_compiling() else matmul.linear  # compilers choose an implementation
        split = (self.dim, self.dim, self.focal_level + 1)
        query, context, gates = project(linear, hidden_state, f, split)
        modulated = modulated_query(linear, query, context, gates, kernels, h, self.normalize_modulator)
        if self.use_post_layernorm_in_modulation:
            modulated = self.layernorm(modulated)
        return self.projection_dropout(linear(modulated, *proj))

    def _weights(self) -> Any:
        members = self._modules
        names = "projection_in", "projection_context", "projection_out"
        f, h, proj = (submodules.linear(members.get(name)) for name in names)
        kernels = submodules.focal_kernels(members.get("focal_layers"), _is_gelu)
        if kernels is None or len(kernels) != self.focal_level:
            return None
        supported = (
            f and h and proj and submodules.of_dtype(kernels, f[0].dtype) and _is_gelu(members.get("activation"))
        )
        return (f, kernels, h, proj) if supported else None


class FusedFocalNetMlp(FocalNetMlp):
    """Replaces transformers' class."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        weights = None if submodules.observed(hidden_state) or torch.compiler.is_compiling() else self._weights()
        if weights is None:
            return super().forward(hidden_state)
        submodules.check_devices(hidden_state, weights)
        return self.drop(matmul.mlp(hidden_state, *weights))

    def _weights(self) -> Any:
        members = self._modules
        fc1, fc2 = (submodules.linear(members.get(name)) for name in ("fc1", "fc2"))
        supported = _is_gelu(members.get("activation")) and submodules.is_identity(members.get("drop"))
        return (*fc1, *fc2) if fc1 and fc2 and supported else None


ROOTS = (FocalNetModulation, FocalNetLayer)
FUSED: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    FocalNetModulation: FusedFocalNetModulation,
    FocalNetMlp: FusedFocalNetMlp,
}
