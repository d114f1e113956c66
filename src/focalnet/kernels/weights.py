"""The weights of a block, collected from its modules, as tensors or packed weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

Norm = tuple[torch.Tensor, torch.Tensor, float]  # weight, bias, eps
Linear = tuple[Any, torch.Tensor]  # weight (O, I), or a PackedWeight or Int8Weight of it; bias


class ModulationWeights(NamedTuple):
    """The weights of a focal modulation."""

    f: Linear
    kernels: list[torch.Tensor]
    h: Linear
    ln: Norm | None
    proj: Linear
    split: tuple[int, int, int]
    normalize: bool

    def tensors(self) -> list[torch.Tensor]:
        return [*self.f, *self.kernels, *self.h, *(() if self.ln is None else self.ln[:2]), *self.proj]


class MlpWeights(NamedTuple):
    """The weights of an MLP."""

    fc1: Linear
    fc2: Linear

    def tensors(self) -> list[torch.Tensor]:
        return [*self.fc1, *self.fc2]


class BlockWeights(NamedTuple):
    """The weights of a block."""

    norm1: Norm
    modulation: ModulationWeights
    norm2: Norm
    mlp: MlpWeights
    gamma_1: torch.Tensor | None
    gamma_2: torch.Tensor | None
    post_norm: bool

    def tensors(self) -> list[torch.Tensor]:
        scales = [gamma for gamma in (self.gamma_1, self.gamma_2) if gamma is not None]
        return [*self.norm1[:2], *self.modulation.tensors(), *self.norm2[:2], *self.mlp.tensors(), *scales]
