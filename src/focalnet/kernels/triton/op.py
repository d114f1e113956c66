"""``focalnet::focal_context_triton``: launches the kernels, forward and backward.

Imported on use, because it needs Triton. With ``triton_op``, ``torch.compile`` sees the kernels and the PyTorch
operations between them.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch.autograd import forward_ad
from torch.library import triton_op
from torch.utils.flop_counter import register_flop_formula

from focalnet.errors import InputError
from focalnet.kernels import backend, reference
from focalnet.kernels.triton import proof, tiling
from focalnet.kernels.triton.gradients import (
    global_gradient_kernel,
    input_gradient_kernel,
    last_gradient_kernel,
    level_gradient_kernel,
    plane_gradient_kernel,
    weight_gradient_kernel,
)
from focalnet.kernels.triton.kernels import finish_kernel, level_kernel, plane_kernel
from focalnet.kernels.triton.tiling import Tile
from focalnet.ops import derivatives

INTERPRETED = not isinstance(level_kernel, triton.JITFunction)  # TRITON_INTERPRET=1: on the CPU, for tests

# PyTorch parses this source for the kernels that an operation launches, to hash their code: it looks for
# ``wrap_triton(name)`` in the operation or in a function defined above it.
if not INTERPRETED:
    from torch.library import wrap_triton as wrap_triton
else:

    def wrap_triton(triton_kernel: Callable[..., Any], /) -> Any:
        """Interpreted kernels are launched directly."""
        return triton_kernel


def _levels(
    x: torch.Tensor,
    g: torch.Tensor,
    taps: torch.Tensor,
    sizes: list[int],
    out: torch.Tensor,
    tile: Tile,
    common: tuple[int, ...],
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launches one kernel per level, then one that adds the global level."""
    B, H, W, C = out.shape
    L, programs = len(sizes), B * tile.blocks(H, W) * tile.columns(C)
    contexts = out.new_empty((L - 1, *out.shape))
    z = out.new_empty((L, *out.shape) if keep else 0)
    parts = taps.new_empty((B, tile.blocks(H, W), C))
    first = 0
    for level, k in enumerate(sizes):
        _launch(
            wrap_triton(level_kernel), programs, tile, x, taps[first:], g, contexts, z, out, parts, *common,
            K=k, LEVEL=level, LAST=level == L - 1, KEEP=keep,
        )  # fmt: skip
        first += k * k
    totals = parts.sum(1)
    _launch(wrap_triton(finish_kernel), programs, tile, out, g, totals, *common[2:4], *common[5:], L=L)
    return out, z, totals


@triton_op("focalnet::focal_context_triton", mutates_args=())
def focal_context(
    context: torch.Tensor, gates: torch.Tensor, taps: torch.Tensor, sizes: list[int], keep: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operation; also returns what its backward pass needs (empty if that is recomputed).

    Args:
        context: ``(B, H, W, C)``.
        gates: ``(B, H, W, L + 1)``.
        taps: kernel weights of all levels, ``(sum of k * k, C)``, float32, contiguous; see ``pack``.
        sizes: the L kernel sizes.
        keep: whether a backward pass will follow.

    Returns:
        The aggregated context (B, H, W, C); outputs of all convolutions (L, B, H, W, C); sum of the last level over
        the plane (B, C), float32.
    """
    if forward_ad._current_level >= 0:  # PyTorch would silently lose the tangent
        raise InputError(
            "focal_context_triton has no forward-mode derivative: call focalnet.kernels.focal_context, which has one"
        )
    B, H, W, C = context.shape
    x, g, taps = _by_pixel(context), _by_pixel(gates), taps.contiguous()
    out = torch.empty(context.shape, dtype=context.dtype, device=context.device)
    tile = tiling.convolution_tile(H, W, C)
    common = (*_strides(x), *_strides(g), B, H, W, C, tile.per_row(W), tile.blocks(H, W), tile.columns(C))
    with on_device(context.device):
        if tiling.whole_plane(H, W, taps.shape[0] if keep else 0):
            contexts = out.new_empty((len(sizes), *out.shape))
            _launch(
                wrap_triton(plane_kernel), B * tile.columns(C), tile, x, taps, g, contexts, out, *common,
                KERNELS=_four_bits(sizes), L=len(sizes),
            )  # fmt: skip
            return out, out.new_empty(0), taps.new_empty(0)
        return _levels(x, g, taps, sizes, out, tile, common, keep)


def _level_gradients(
    grad: torch.Tensor,
    g: torch.Tensor,
    taps: torch.Tensor,
    sizes: list[int],
    z: torch.Tensor,
    totals: torch.Tensor,
    grad_z: torch.Tensor,
    contexts: torch.Tensor,
    grad_x: torch.Tensor,
    gate_parts: torch.Tensor,
    tile: Tile,
    common: tuple[int, ...],
) -> None:
    """Launches one kernel per level, from the last to the first; writes to ``grad_z`` ... ``gate_parts``."""
    B, H, W, C = grad.shape
    L, programs = len(sizes), B * tile.blocks(H, W) * tile.columns(C)
    parts = taps.new_empty((B, tile.blocks(H, W), C))
    _launch(wrap_triton(global_gradient_kernel), programs, tile, grad, g, totals, gate_parts, parts, *common, L=L)
    _launch(
        wrap_triton(last_gradient_kernel), programs, tile,
        grad, z, g, totals, parts.sum(1), grad_z, contexts, gate_parts, *common, L=L,
    )  # fmt: skip
    first = taps.shape[0]
    for level in reversed(range(L)):
        first -= sizes[level] ** 2
        if level > 0:
            _launch(
                wrap_triton(level_gradient_kernel), programs, tile,
                grad, z, g, taps[first:], grad_z, contexts, gate_parts, *common, K=sizes[level], LEVEL=level - 1, L=L,
            )  # fmt: skip
    _launch(wrap_triton(input_gradient_kernel), programs, tile, grad_z, taps, grad_x, *common[3:], K=sizes[0])


def _weight_gradients(x: torch.Tensor, contexts: torch.Tensor, grad_z: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Gradient of the packed kernel weights, (sum of k * k, C), by a bounded number of partial sums."""
    B, H, W, C = x.shape
    tile, taps = tiling.weight_tile(W, C), sum(k * k for k in sizes)
    blocks = -(-B * H * tile.per_row(W) // tile.R)
    chunks = min(blocks, max(1, tiling.PROGRAMS // tile.columns(C)))
    steps = -(-blocks // chunks)
    parts = torch.empty((chunks, taps, C), dtype=torch.float32, device=x.device)
    first = 0
    for level, k in enumerate(sizes):
        below = x if level == 0 else contexts[level - 1]
        groups = -(-k // tiling.weight_rows(k))
        _launch(
            wrap_triton(weight_gradient_kernel), chunks * groups * tile.columns(C), tile,
            below, grad_z[level], parts, *_strides(below), B, H, W, C, tile.per_row(W), steps,
            tile.columns(C), groups, first, taps, K=k, ROWS=tiling.weight_rows(k),
        )  # fmt: skip
        first += k * k
    return parts.sum(0)


@triton_op("focalnet::focal_context_triton_backward", mutates_args=())
def focal_context_backward(
    grad: torch.Tensor,
    context: torch.Tensor,
    gates: torch.Tensor,
    taps: torch.Tensor,
    sizes: list[int],
    z: torch.Tensor,
    totals: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of context, gates and kernel weights, in their dtypes."""
    B, H, W, C = context.shape
    x, g, taps, grad = _by_pixel(context), _by_pixel(gates), taps.contiguous(), grad.contiguous()
    tile = tiling.convolution_tile(H, W, C)
    common = (*_strides(g), B, H, W, C, tile.per_row(W), tile.blocks(H, W), tile.columns(C))
    grad_x = torch.empty(context.shape, dtype=context.dtype, device=context.device)
    gate_parts = taps.new_empty((tile.columns(C), *gates.shape))
    contexts = grad_x.new_empty((len(sizes), *grad_x.shape))
    grad_z = torch.empty_like(contexts)
    with on_device(context.device):
        if tiling.whole_plane(H, W, taps.shape[0]):
            _launch(
                wrap_triton(plane_gradient_kernel), B * tile.columns(C), tile,
                grad, x, g, taps, grad_z, contexts, grad_x, gate_parts, *_strides(x), *common,
                KERNELS=_four_bits(sizes), L=len(sizes), TAPS=taps.shape[0],
            )  # fmt: skip
        elif z.numel() == 0:
            raise InputError("focal_context_triton was called with keep=False and cannot be differentiated")
        else:
            _level_gradients(grad, g, taps, sizes, z, totals, grad_z, contexts, grad_x, gate_parts, tile, common)
        grad_taps = _weight_gradients(x, contexts, grad_z, sizes)
    return grad_x, gate_parts.sum(0).to(gates.dtype), grad_taps


def _launch(kernel: Any, programs: int, tile: Tile, *arguments: Any, **constants: Any) -> None:
    kernel[(programs,)](*arguments, **constants, TW=tile.TW, R=tile.R, BC=tile.BC, num_warps=tile.warps)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Context that makes ``device`` current, since Triton launches on the current GPU."""
    current = device.type != "cuda" or torch.compiler.is_compiling() or device.index == torch.cuda.current_device()
    return contextlib.nullcontext() if current else torch.cuda.device(device)


def _by_pixel(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself if channels are contiguous and rows follow each other, as in slices of a projection; else a copy."""
    _, _, W, C = x.shape
    dense = (C == 1 or x.stride(3) == 1) and (x.shape[1] == 1 or x.stride(1) == W * x.stride(2))
    return x if dense else x.contiguous()


def _strides(x: torch.Tensor) -> tuple[int, int]:
    """Strides between images and between pixels."""
    return x.stride(0), x.stride(2) if x.shape[2] > 1 else x.stride(1)


def _four_bits(sizes: list[int]) -> int:
    return sum(k << (4 * level) for level, k in enumerate(sizes))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    context, gates, taps, ctx.sizes, _ = inputs
    ctx.by_name = backend.current() == "triton"  # read here, since backward passes run in another thread
    _, z, totals = output
    ctx.mark_non_differentiable(z, totals)
    ctx.set_materialize_grads(False)  # otherwise a zero gradient as large as z is created in every step
    ctx.save_for_backward(context, gates, taps, z, totals)


def _backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None, None
    context, gates, taps, z, totals = ctx.saved_tensors
    if not derivatives.needed(grad):
        try:
            return *focal_context_backward(grad, context, gates, taps, ctx.sizes, z, totals), None, None
        except (torch.OutOfMemoryError, InputError):
            raise
        except Exception as error:  # compilers, drivers and caches may raise any exception
            if ctx.by_name or torch.compiler.is_compiling():
                raise
            proof.deny(context.device, context.dtype, ctx.sizes, error)
    by_reference = functools.partial(_by_reference, ctx.sizes)
    return *derivatives.gradients(by_reference, (context, gates, taps), [grad]), None, None


def _by_reference(sizes: list[int], context: torch.Tensor, gates: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    levels = torch.split(taps.to(context.dtype), [k * k for k in sizes])
    weights = [level.t().reshape(-1, 1, k, k) for level, k in zip(levels, sizes, strict=True)]
    return reference.focal_context(context, gates, weights)


focal_context.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.focalnet.focal_context_triton)
def _flops(context_shape: torch.Size, gates_shape: torch.Size, taps_shape: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of the convolutions, two per multiply-accumulate, as PyTorch counts."""
    return 2 * math.prod(context_shape[:3]) * math.prod(taps_shape)


@register_flop_formula(torch.ops.focalnet.focal_context_triton_backward)
def _backward_flops(grad_shape: torch.Size, *shapes: Any, **_: Any) -> int:
    """Two gradients, each as many as the forward pass, plus recomputed convolutions for a whole plane."""
    height, width = grad_shape[1], grad_shape[2]
    recomputed = tiling.whole_plane(height, width, shapes[2][0])
    return (3 if recomputed else 2) * _flops(*shapes)
