"""Inference of a block on the CPU as a fixed sequence of operations.

With single images, a tenth of a small network's time is Python overhead: calling modules, looking up parameters,
choosing an implementation for each layer. Here this is done once per block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from focalnet.kernels import backend, cpu, matmul
from focalnet.kernels.dispatch import by_native
from focalnet.kernels.int8 import Int8Weight
from focalnet.kernels.matmul import PackedWeight, product
from focalnet.kernels.rowwise import layer_norm
from focalnet.kernels.weights import BlockWeights, Linear, MlpWeights, ModulationWeights, Norm


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
        weights: weights of the block; those of linear layers may be packed, in int8, too.
        inplace: whether ``x_BHWC`` may be overwritten.
    """
    norm1, modulation, norm2, mlp, gamma_1, gamma_2, post_norm = weights
    x = x_BHWC
    if post_norm:
        x = _add(x, layer_norm(_modulate(modulation, x, None, False), *norm1), gamma_1)
        return _add(x, layer_norm(_mlp(mlp, x, None, False), *norm2), gamma_2)
    normed = _normed(x, norm1, modulation.f)
    if gamma_1 is None:
        x = _modulate(modulation, normed, x, inplace)
    else:
        x = _add(x, _modulate(modulation, normed, None, False, x.dtype), gamma_1)
    normed = _normed(x, norm2, mlp.fc1)
    if gamma_2 is None:
        return _mlp(mlp, normed, x, True)
    return _add(x, _mlp(mlp, normed, None, False, x.dtype), gamma_2)


def _modulate(
    weights: ModulationWeights,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    inplace: bool,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    f, kernels, h, ln, proj, split, normalize = weights
    dtype = dtype or (x if residual is None else residual).dtype
    query, context, gates = _linear(x, f, dtype=dtype).split_with_sizes(split, -1)
    aggregated = by_native(context, gates, kernels)
    if normalize:
        aggregated = aggregated / (len(kernels) + 1)
    modulator = _linear(aggregated, h)
    if ln is not None:
        modulated = _normed(query * modulator, ln, proj)
    elif type(proj[0]) is Int8Weight:
        modulated = cpu.load().quantize_product(query, modulator, proj[0].steps)
    else:
        modulated = query * modulator
    return _linear(modulated, proj, dtype=dtype, residual=residual, inplace=inplace)


def _mlp(
    weights: MlpWeights,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    inplace: bool,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    fc1, fc2 = weights
    dtype = dtype or (x if residual is None else residual).dtype
    if type(fc2[0]) is Int8Weight:
        active = cpu.load().quantize_gelu(_linear(x, fc1, dtype=dtype), fc2[0].steps)
    elif type(fc1[0]) is Int8Weight:
        active = cpu.load().gelu_(_linear(x, fc1, dtype=dtype))
    else:
        active = _linear(x, fc1, "gelu")
    return _linear(active, fc2, dtype=dtype, residual=residual, inplace=inplace)


def _normed(x: torch.Tensor, norm: Norm, layer: Linear) -> torch.Tensor:
    """The layer norm of ``x``, as uint8 levels if ``layer``, whose input it is, computes in int8."""
    if type(layer[0]) is Int8Weight:
        return cpu.load().quantize_norm(x, *norm, layer[0].steps)
    return layer_norm(x, *norm)


def _linear(
    x: torch.Tensor,
    layer: Linear,
    activation: str = "none",
    *,
    dtype: torch.dtype | None = None,
    residual: torch.Tensor | None = None,
    inplace: bool = False,
) -> torch.Tensor:
    """A linear layer; ``dtype`` is that of the output, by default the dtype of ``x``, which may be uint8 levels."""
    weight, bias = layer
    if type(weight) is Int8Weight:
        levels = x if x.dtype is torch.uint8 else cpu.load().quantize(x, weight.steps)
        return weight.product(levels, dtype or x.dtype, residual=residual, inplace=inplace)
    if type(weight) is PackedWeight:
        weight = weight.to_multiply(x)
    return product(x, weight, bias, activation, residual=residual, inplace=inplace)


def _add(x: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
    return x + (y if gamma is None else gamma * y)
