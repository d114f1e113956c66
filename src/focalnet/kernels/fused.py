"""The modules of ``focalnet.nn`` with their operations fused.

A fused module has the parameters, state dict and submodules of the original. While all submodules are unmodified, its
forward pass takes their weights and runs fused operations. Otherwise it runs the original forward pass, which calls the
submodules, each of which makes the same decision.
"""

from __future__ import annotations

import torch

from focalnet.kernels import direct, submodules
from focalnet.kernels.deformable import deformable_attention
from focalnet.kernels.matmul import linear, linear_of_product, mlp
from focalnet.kernels.modulator import modulated_query, modulator, project
from focalnet.kernels.rowwise import fork_and_norm, layer_norm
from focalnet.kernels.weights import BlockWeights, MlpWeights, ModulationWeights
from focalnet.nn import FocalModulation, FocalNetBlock, Mlp, PatchEmbed
from focalnet.nn.block import DropPath
from focalnet.nn.deformable import DeformableAttention
from focalnet.ops import modes
from focalnet.ops.deformable import Shapes


class FusedFocalModulation(FocalModulation):
    """Focal modulation with hierarchical contextualization and gated aggregation as one operation."""

    recompute = False  # set by ``optimize``: save query and modulator for the backward pass, not their product

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        weights = None if submodules.observed(x_BHWC) else modulation_weights(self)
        if weights is None:
            return super().forward(x_BHWC)
        submodules.check_devices(x_BHWC, weights.tensors())
        return modulate(weights, x_BHWC, recompute=self.recompute)


class FusedMlp(Mlp):
    """The MLP, with GELU fused into its neighbors."""

    recompute = False  # set by ``optimize``: recompute GELU in the backward pass

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        weights = None if submodules.observed(x_BHWC) else mlp_weights(self)
        if weights is None:
            return super().forward(x_BHWC)
        submodules.check_devices(x_BHWC, weights.tensors())
        return mlp(x_BHWC, *weights.tensors(), recompute=self.recompute)


class FusedFocalNetBlock(FocalNetBlock):
    """A block, with residual sums fused into matrix products, and residual gradients into the gradients of norms."""

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        weights = None if submodules.observed(x_BHWC) else block_weights(self)
        if weights is None:
            return super().forward(x_BHWC)
        dropping = self.training and self.drop_path.rate > 0
        if not (dropping or torch.is_grad_enabled()) and direct.takes(x_BHWC, weights.tensors()):
            return direct.block(x_BHWC, weights)
        submodules.check_devices(x_BHWC, weights.tensors())
        recompute = bool(self.modulation.recompute), bool(self.mlp.recompute)
        return self._forward_branches(x_BHWC, weights, dropping, recompute)

    def _forward_branches(
        self, x: torch.Tensor, weights: BlockWeights, dropping: bool, recompute: tuple[bool, bool]
    ) -> torch.Tensor:
        norm1, modulation, norm2, feed, gamma_1, gamma_2, post_norm = weights
        if post_norm:
            y = layer_norm(modulate(modulation, x, recompute=recompute[0]), *norm1)
            x = self._residual(x, y, gamma_1)
            y = layer_norm(mlp(x, *feed.tensors(), recompute=recompute[1]), *norm2)
            return self._residual(x, y, gamma_2)
        x, normed = fork_and_norm(x, *norm1)
        fused_residual = x if gamma_1 is None and not dropping else None
        y = modulate(modulation, normed, residual=fused_residual, recompute=recompute[0])
        x = y if fused_residual is not None else self._residual(x, y, gamma_1)
        x, normed = fork_and_norm(x, *norm2)
        fused_residual = x if gamma_2 is None and not dropping else None
        y = mlp(normed, *feed.tensors(), residual=fused_residual, recompute=recompute[1])
        return y if fused_residual is not None else self._residual(x, y, gamma_2)

    def _residual(self, x: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = x + self.drop_path(y if gamma is None else gamma * y)
        return out


class FusedPatchEmbed(PatchEmbed):
    """The patch embedding with our layer norm, which within autocast keeps the dtype of the convolution."""

    def _normalized(self, y_BHWC: torch.Tensor) -> torch.Tensor:
        norm = None if submodules.observed(y_BHWC) else submodules.norm(self._modules.get("norm"), y_BHWC.shape[-1])
        return super()._normalized(y_BHWC) if norm is None else layer_norm(y_BHWC, *norm)


class FusedDeformableAttention(DeformableAttention):
    """Deformable attention that samples, weights and sums its points in one operation and calls all of its layers."""

    def _sample(
        self, values: torch.Tensor, shapes: Shapes, locations: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        if submodules.observed(values):
            return super()._sample(values, shapes, locations, weights)
        return deformable_attention(values, shapes, locations, weights)


def modulate(
    weights: ModulationWeights,
    x_BHWC: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    recompute: bool = False,
) -> torch.Tensor:
    """Focal modulation by fused operations; adds ``residual`` if given."""
    f, kernels, h, ln, proj, split, normalize = weights
    query, context, gates = project(linear, x_BHWC, f, split)
    if recompute and ln is None and torch.is_grad_enabled():
        factor = modulator(linear, context, gates, kernels, h, normalize)
        return linear_of_product(query, factor, *proj, residual=residual)
    modulated = modulated_query(linear, query, context, gates, kernels, h, normalize)
    if ln is not None:
        modulated = layer_norm(modulated, *ln)
    return linear(modulated, *proj, residual=residual)


def modulation_weights(module: FocalModulation) -> ModulationWeights | None:
    """The weights of a focal modulation; None if any of its submodules was modified."""
    members = module._modules
    f, h, proj = (
        submodules.linear(members.get("f")),
        submodules.linear(members.get("h")),
        submodules.linear(members.get("proj")),
    )
    levels = submodules.focal_kernels(members.get("focal_layers"), submodules.is_gelu)
    if f is None or h is None or proj is None or levels is None or len(levels) != module.levels:
        return None
    if not submodules.of_dtype(levels, f[0].dtype):
        return None
    if not (submodules.is_gelu(members.get("act")) and submodules.is_identity(members.get("proj_drop"))):
        return None
    ln = None
    if (ln_module := members.get("ln")) is not None and (ln := submodules.norm(ln_module, module.dim)) is None:
        return None
    split = (module.dim, module.dim, module.levels + 1)
    return ModulationWeights(f, levels, h, ln, proj, split, module.normalize)


def mlp_weights(module: Mlp) -> MlpWeights | None:
    """The weights of an MLP; None if any of its submodules was modified."""
    members = module._modules
    fc1, fc2 = submodules.linear(members.get("fc1")), submodules.linear(members.get("fc2"))
    supported = submodules.is_gelu(members.get("act")) and submodules.is_identity(members.get("drop"))
    return MlpWeights(fc1, fc2) if supported and fc1 is not None and fc2 is not None else None


def block_weights(block: FocalNetBlock) -> BlockWeights | None:
    """The weights of a block; None if any of its submodules was modified."""
    members = block._modules
    modulation, feed = members.get("modulation"), members.get("mlp")
    if not (submodules.unmodified(modulation, FusedFocalModulation) and submodules.unmodified(feed, FusedMlp)):
        return None
    assert isinstance(modulation, FocalModulation)
    assert isinstance(feed, Mlp)
    norm1, norm2 = (
        submodules.norm(members.get("norm1"), modulation.dim),
        submodules.norm(members.get("norm2"), modulation.dim),
    )
    inner, outer = modulation_weights(modulation), mlp_weights(feed)
    if norm1 is None or norm2 is None or inner is None or outer is None:
        return None
    if not submodules.unmodified(members.get("drop_path"), DropPath):
        return None
    gammas: list[torch.Tensor | None] = []
    for name in ("gamma_1", "gamma_2"):
        # The attribute is computed: by a hook, a module, or a property that a parametrization added to the class.
        if block.__dict__.get(name) is not None or name in members or hasattr(type(block), name):
            return None
        gamma = block._parameters.get(name)
        if gamma is not None and not modes.ordinary(gamma):
            return None
        gammas.append(gamma)
    return BlockWeights(norm1, inner, norm2, outer, gammas[0], gammas[1], block.post_norm)
