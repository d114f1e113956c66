"""timm's focal modulation and MLP with their operations fused.

timm's shapes are channels-first, but its layer norms leave tensors channels-last in memory, so the permutations here
are views.
"""

# mypy: disable-error-code="no-any-return, attr-defined, no-untyped-call"
# The classes below are only partly typed.

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.focalnet import FocalModulation, FocalNetBlock

from focalnet.kernels import matmul, submodules
from focalnet.kernels.modulator import modulated_query, project


def _renamed(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same function under another name: TorchScript identifies methods by ``__name__`` only."""
    assert isinstance(method, types.FunctionType)
    return types.FunctionType(method.__code__, method.__globals__, name, method.__defaults__, method.__closure__)


class FusedFocalModulation(FocalModulation):
    """Replaces timm's class on existing modules: same submodules, same parameters, same output."""

    original = _renamed(FocalModulation.forward, "original")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():  # scripted models must run without this library
            return self.original(x)
        return self._fused(x)

    @torch.jit.unused
    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        weights = None if submodules.observed(x) else self._weights()
        if weights is None:
            return self.original(x)
        f, kernels, h, proj = weights
        submodules.check_devices(x, [*f, *kernels, *h, *proj])
        linear = F.linear if torch.compiler.is_compiling() else matmul.linear  # compilers choose an implementation
        x_BHWC = x.permute(0, 2, 3, 1).contiguous()
        query, context, gates = project(linear, x_BHWC, f, self.input_split)
        modulated = modulated_query(linear, query, context, gates, kernels, h, self.normalize_modulator)
        if not submodules.is_identity(self.norm):
            modulated = self.norm(modulated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(linear(modulated, *proj).permute(0, 3, 1, 2))

    def _weights(self) -> Any:
        members = self._modules
        f, h, proj = (submodules.linear(members.get(name)) for name in ("f", "h", "proj"))
        kernels = submodules.focal_kernels(members.get("focal_layers"), submodules.is_gelu)
        if kernels is None or len(kernels) != self.focal_level:
            return None
        supported = (
            f and h and proj and submodules.of_dtype(kernels, f[0].dtype) and submodules.is_gelu(members.get("act"))
        )
        return (f, kernels, h, proj) if supported else None


class FusedMlp(Mlp):
    """Replaces timm's class in FocalNet blocks."""

    original = _renamed(Mlp.forward, "original")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self.original(x)
        return self._fused(x)

    @torch.jit.unused
    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        weights = None if submodules.observed(x) or torch.compiler.is_compiling() else self._weights()
        if weights is None:
            return self.original(x)
        submodules.check_devices(x, weights)
        return self.drop2(matmul.mlp(x.permute(0, 2, 3, 1), *weights).permute(0, 3, 1, 2))

    def _weights(self) -> Any:
        members = self._modules
        fc1, fc2 = (submodules.linear(members.get(name)) for name in ("fc1", "fc2"))
        supported = submodules.is_gelu(members.get("act")) and all(
            submodules.is_identity(members.get(n)) for n in ("drop1", "norm")
        )
        return (*fc1, *fc2) if fc1 and fc2 and supported else None


ROOTS = (FocalModulation, FocalNetBlock)
FUSED: dict[type[torch.nn.Module], type[torch.nn.Module]] = {FocalModulation: FusedFocalModulation, Mlp: FusedMlp}
