"""The modules of ``focalnet.nn`` with their operations fused.

A fused module has the parameters, the state dict and the parts of the plain one. Its forward pass takes the weights out
of its parts and runs fused operations on them, as long as each part is exactly what its class says; else it is that of
the plain class, which calls the parts, each of which again decides for itself.
"""

from __future__ import annotations

import torch

from focalnet.kernels import direct, parts
from focalnet.kernels.dispatch import focal_context
from focalnet.kernels.matmul import linear, linear_of_product, mlp
from focalnet.kernels.rows import fork_and_norm, layer_norm
from focalnet.kernels.weights import BlockWeights, MlpWeights, ModulationWeights
from focalnet.nn import FocalModulation, FocalNetBlock, Mlp, PatchEmbed
from focalnet.nn.block import DropPath
from focalnet.ops import modes


class FusedFocalModulation(FocalModulation):
    """Focal modulation with its hierarchy of contexts in one operation."""

    recompute = False  # set by ``optimize``: keep query and modulator for the backward pass, not their product

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        weights = None if parts.observed(x_BHWC) else modulation_weights(self)
        if weights is None:
            return super().forward(x_BHWC)
        parts.check_devices(x_BHWC, weights.tensors())
        return modulate(weights, x_BHWC, recompute=self.recompute)


class FusedMlp(Mlp):
    """The MLP, GELU a part of what is around it."""

    recompute = False  # set by ``optimize``: make GELU again in the backward pass

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        weights = None if parts.observed(x_BHWC) else mlp_weights(self)
        if weights is None:
            return super().forward(x_BHWC)
        parts.check_devices(x_BHWC, weights.tensors())
        return mlp(x_BHWC, *weights.tensors(), recompute=self.recompute)


class FusedFocalNetBlock(FocalNetBlock):
    """A block; residual sums are parts of the products before them, and of the gradients of norms."""

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        weights = None if parts.observed(x_BHWC) else block_weights(self)
        if weights is None:
            return super().forward(x_BHWC)
        dropping = self.training and self.drop_path.rate > 0
        if not (dropping or torch.is_grad_enabled()) and direct.takes(x_BHWC, weights.tensors()):
            return direct.block(x_BHWC, weights)
        parts.check_devices(x_BHWC, weights.tensors())
        recompute = bool(self.modulation.recompute), bool(self.mlp.recompute)
        return self._by_branches(x_BHWC, weights, dropping, recompute)

    def _by_branches(
        self, x: torch.Tensor, weights: BlockWeights, dropping: bool, recompute: tuple[bool, bool]
    ) -> torch.Tensor:
        norm1, modulation, norm2, feed, gamma_1, gamma_2, post_norm = weights
        if post_norm:
            y = layer_norm(modulate(modulation, x, recompute=recompute[0]), *norm1)
            x = self._residual(x, y, gamma_1)
            y = layer_norm(mlp(x, *feed.tensors(), recompute=recompute[1]), *norm2)
            return self._residual(x, y, gamma_2)
        x, normed = fork_and_norm(x, *norm1)
        inside = x if gamma_1 is None and not dropping else None
        y = modulate(modulation, normed, residual=inside, recompute=recompute[0])
        x = y if inside is not None else self._residual(x, y, gamma_1)
        x, normed = fork_and_norm(x, *norm2)
        inside = x if gamma_2 is None and not dropping else None
        y = mlp(normed, *feed.tensors(), residual=inside, recompute=recompute[1])
        return y if inside is not None else self._residual(x, y, gamma_2)

    def _residual(self, x: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = x + self.drop_path(y if gamma is None else gamma * y)
        return out


class FusedPatchEmbed(PatchEmbed):
    """The patch embedding with a norm of ours: within autocast it keeps the dtype of the convolution."""

    def _normalized(self, y_BHWC: torch.Tensor) -> torch.Tensor:
        norm = None if parts.observed(y_BHWC) else parts.norm(self._modules.get("norm"), y_BHWC.shape[-1])
        return super()._normalized(y_BHWC) if norm is None else layer_norm(y_BHWC, *norm)


def modulate(
    weights: ModulationWeights,
    x_BHWC: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    recompute: bool = False,
) -> torch.Tensor:
    """Focal modulation by fused operations, plus a residual."""
    f, kernels, h, ln, proj, split, normalize = weights
    query, context, gates = linear(x_BHWC, *f).split_with_sizes(split, -1)
    aggregated = focal_context(context, gates, kernels)
    if normalize:
        aggregated = aggregated / (len(kernels) + 1)
    modulator = linear(aggregated, *h)
    if ln is not None:
        return linear(layer_norm(query * modulator, *ln), *proj, residual=residual)
    if recompute and torch.is_grad_enabled():
        return linear_of_product(query, modulator, *proj, residual=residual)
    return linear(query * modulator, *proj, residual=residual)


def modulation_weights(module: FocalModulation) -> ModulationWeights | None:
    """What the modulation computes with; None unless it and all of its parts are exactly what their classes say."""
    members = module._modules
    f, h, proj = parts.linear(members.get("f")), parts.linear(members.get("h")), parts.linear(members.get("proj"))
    levels = parts.focal_kernels(members.get("focal_layers"), parts.is_gelu)
    if f is None or h is None or proj is None or levels is None or len(levels) != module.levels:
        return None
    if not parts.of_dtype(levels, f[0].dtype):
        return None
    if not (parts.is_gelu(members.get("act")) and parts.does_nothing(members.get("proj_drop"))):
        return None
    ln = None
    if (given := members.get("ln")) is not None and (ln := parts.norm(given, module.dim)) is None:
        return None
    split = (module.dim, module.dim, module.levels + 1)
    return ModulationWeights(f, levels, h, ln, proj, split, module.normalize)


def mlp_weights(module: Mlp) -> MlpWeights | None:
    """What the MLP computes with; None unless all of its parts are exactly what their classes say."""
    members = module._modules
    fc1, fc2 = parts.linear(members.get("fc1")), parts.linear(members.get("fc2"))
    plain = parts.is_gelu(members.get("act")) and parts.does_nothing(members.get("drop"))
    return MlpWeights(fc1, fc2) if plain and fc1 is not None and fc2 is not None else None


def block_weights(block: FocalNetBlock) -> BlockWeights | None:
    """What the block computes with; None unless all of its parts are exactly what their classes say."""
    members = block._modules
    modulation, feed = members.get("modulation"), members.get("mlp")
    if not (parts.unmodified(modulation, FusedFocalModulation) and parts.unmodified(feed, FusedMlp)):
        return None
    assert isinstance(modulation, FocalModulation)
    assert isinstance(feed, Mlp)
    norm1, norm2 = parts.norm(members.get("norm1"), modulation.dim), parts.norm(members.get("norm2"), modulation.dim)
    inner, outer = modulation_weights(modulation), mlp_weights(feed)
    if norm1 is None or norm2 is None or inner is None or outer is None:
        return None
    if not parts.unmodified(members.get("drop_path"), DropPath):
        return None
    gammas: list[torch.Tensor | None] = []
    for name in ("gamma_1", "gamma_2"):
        # Computed by somebody: a hook, a module, or a property of a class made by a parametrization.
        if block.__dict__.get(name) is not None or name in members or hasattr(type(block), name):
            return None
        gamma = block._parameters.get(name)
        if gamma is not None and not modes.ordinary(gamma):
            return None
        gammas.append(gamma)
    return BlockWeights(norm1, inner, norm2, outer, gammas[0], gammas[1], block.post_norm)
