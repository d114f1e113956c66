"""Inference of a block on the CPU as a fixed sequence of operations.

With single images, a tenth of a small network's time is Python overhead: calling modules, looking up parameters,
choosing an implementation for each layer. Here this is done once per block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from focalnet.kernels import backend, cpu, matmul
from focalnet.kernels.dispatch import by_native
from focalnet.kernels.matmul import PackedWeight, product
from focalnet.kernels.rowwise import layer_norm
from focalnet.kernels.weights import BlockWeights, Linear, MlpWeights, ModulationWeights


def takes(x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether ``block`` supports these weights and an input ``x``, provided that the pass is not ``observed``."""
    return bool(
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and x.is_cpu
        and x.ndim == 4
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and backend.current() in ("auto", "native")
        and cpu.built()
        and fit(x, tensors)
    )


def fit(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> bool:
    """Whether all weights are on the CPU in the dtype of ``x``, and no kernel is too large."""
    dtype = x.dtype
    if dtype not in matmul.DTYPES:
        return False
    for weight in weights:
        if weight.dtype is not dtype or not weight.is_cpu or (weight.ndim == 4 and weight.shape[-1] not in cpu.KERNELS):
            return False
    return True


def block(x_BHWC: torch.Tensor, weights: BlockWeights, *, inplace: bool = False) -> torch.Tensor:
    """Runs a block; returns ``(B, H, W, C)``.

    Args:
        x_BHWC: an input for which ``takes`` is true.
        weights: weights of the block; those of linear layers may be packed.
        inplace: whether ``x_BHWC`` may be overwritten.
    """
    norm1, modulation, norm2, mlp, gamma_1, gamma_2, post_norm = weights
    x = x_BHWC
    if post_norm:
        x = _add(x, layer_norm(_modulate(modulation, x, None, False), *norm1), gamma_1)
        return _add(x, layer_norm(_mlp(mlp, x, None, False), *norm2), gamma_2)
    normed = layer_norm(x, *norm1)
    if gamma_1 is None:
        x = _modulate(modulation, normed, x, inplace)
    else:
        x = _add(x, _modulate(modulation, normed, None, False), gamma_1)
    normed = layer_norm(x, *norm2)
    if gamma_2 is None:
        return _mlp(mlp, normed, x, True)
    return _add(x, _mlp(mlp, normed, None, False), gamma_2)


def _modulate(
    weights: ModulationWeights, x: torch.Tensor, residual: torch.Tensor | None, inplace: bool
) -> torch.Tensor:
    f, kernels, h, ln, proj, split, normalize = weights
    query, context, gates = _linear(x, f).split_with_sizes(split, -1)
    aggregated = by_native(context, gates, kernels)
    if normalize:
        aggregated = aggregated / (len(kernels) + 1)
    modulated = query * _linear(aggregated, h)
    if ln is not None:
        modulated = layer_norm(modulated, *ln)
    return _linear(modulated, proj, residual=residual, inplace=inplace)


def _mlp(weights: MlpWeights, x: torch.Tensor, residual: torch.Tensor | None, inplace: bool) -> torch.Tensor:
    return _linear(_linear(x, weights.fc1, "gelu"), weights.fc2, residual=residual, inplace=inplace)


def _linear(
    x: torch.Tensor,
    layer: Linear,
    activation: str = "none",
    *,
    residual: torch.Tensor | None = None,
    inplace: bool = False,
) -> torch.Tensor:
    weight, bias = layer
    if type(weight) is PackedWeight:
        weight = weight.to_multiply(x)
    return product(x, weight, bias, activation, residual=residual, inplace=inplace)


def _add(x: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
    return x + (y if gamma is None else gamma * y)
