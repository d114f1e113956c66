"""``focalnet::focal_context_triton``: launches the kernels, forward and backward.

Imported on use, because it needs Triton. Compilers see one opaque operation: a compiled graph runs the same launches as
eager mode, which the self-test covers, and the same fallback to the reference if they fail.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
import triton
from torch.utils.flop_counter import register_flop_formula

from focalnet.errors import InputError
from focalnet.kernels import reference
from focalnet.kernels.registered import registered
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


@functools.partial(registered, "focalnet::focal_context_triton", device_types=None)
def focal_context(
    context: torch.Tensor, gates: torch.Tensor, taps: torch.Tensor, sizes: list[int], keep: bool, by_name: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operation, with or without the global level; also returns what its backward pass needs.

    Args:
        context: ``(B, H, W, C)``.
        gates: ``(B, H, W, L + 1)``; or L channels, then the global level is not added.
        taps: kernel weights of all levels, ``(sum of k * k, C)``, float32, contiguous; see ``pack``.
        sizes: the L kernel sizes.
        keep: whether a backward pass will follow.
        by_name: whether errors are raised, see ``proof.or_reference``.

    Returns:
        The aggregated context (B, H, W, C); outputs of all convolutions (L, B, H, W, C), or (0, B, H, W, C) if the
        backward pass recomputes them; sum of the last level over the plane (B, C), float32, which is differentiable
        without the global level.
    """

    def by_reference() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        out, totals = _by_reference(sizes, context, gates, taps)
        return out.contiguous(), _kept(context, taps, sizes, keep), totals

    run = functools.partial(_forward, context, gates, taps, sizes, keep)
    return proof.or_reference(run, by_reference, context, sizes, by_name)


@focal_context.register_fake
def _(
    context: torch.Tensor, gates: torch.Tensor, taps: torch.Tensor, sizes: list[int], keep: bool, by_name: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    totals = taps.new_empty((context.shape[0], context.shape[3]))
    return context.new_empty(context.shape), _kept(context, taps, sizes, keep), totals


def _kept(context: torch.Tensor, taps: torch.Tensor, sizes: list[int], keep: bool) -> torch.Tensor:
    """Memory for what the backward pass needs of the convolutions."""
    _, H, W, _ = context.shape
    levels = len(sizes) if keep and not tiling.whole_plane(H, W, taps.shape[0]) else 0
    return context.new_empty((levels, *context.shape))


def _forward(
    context: torch.Tensor, gates: torch.Tensor, taps: torch.Tensor, sizes: list[int], keep: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    B, H, W, C = context.shape
    x, g, taps = by_pixel(context), by_pixel(gates), taps.contiguous()
    L, GATES = len(sizes), g.shape[3]
    out, z = x.new_empty(x.shape), _kept(context, taps, sizes, keep)
    tile = tiling.convolution_tile(H, W, C)
    place = (B, H, W, C, tile.per_row(W), tile.blocks(H, W), tile.columns(C))
    with on_device(context.device):
        if tiling.whole_plane(H, W, taps.shape[0] if keep else 0):
            contexts, totals = out.new_empty((L, *out.shape)), taps.new_empty((B, C))
            _launch(
                plane_kernel, B * tile.columns(C), tile,
                x, taps, g, contexts, out, totals, pixel_stride(x), pixel_stride(g), *place,
                KERNELS=_four_bits(sizes), L=L, GATES=GATES,
            )  # fmt: skip
            return out, z, totals
        contexts, programs = out.new_empty((L - 1, *out.shape)), B * tile.blocks(H, W) * tile.columns(C)
        parts = taps.new_empty((B, tile.blocks(H, W), C))
        first = 0
        for level, k in enumerate(sizes):
            _launch(
                level_kernel, programs, tile,
                x, taps[first:], g, contexts, z, out, parts, pixel_stride(x), pixel_stride(g), *place,
                K=k, LEVEL=level, LAST=level == L - 1, KEEP=keep,
            )  # fmt: skip
            first += k * k
        totals = parts.sum(1)
        if GATES > L:
            _launch(finish_kernel, programs, tile, out, g, totals, pixel_stride(g), *place[1:], L=L)
    return out, z, totals


@functools.partial(registered, "focalnet::focal_context_triton_backward", device_types=None)
def focal_context_backward(
    grad: torch.Tensor,
    grad_totals: torch.Tensor | None,
    context: torch.Tensor,
    gates: torch.Tensor,
    taps: torch.Tensor,
    sizes: list[int],
    z: torch.Tensor,
    totals: torch.Tensor,
    by_name: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of context, gates and kernel weights, in their dtypes.

    Args:
        grad: gradient of the aggregated context.
        grad_totals: gradient of the sums of the last level, (B, C), float32; only without the global level.
        context: as in ``focal_context``.
        gates: as in ``focal_context``.
        taps: as in ``focal_context``.
        sizes: as in ``focal_context``.
        z: the outputs of all convolutions, as ``focal_context`` returned them.
        totals: the sums of the last level, as ``focal_context`` returned them.
        by_name: as in ``focal_context``.
    """

    def by_reference() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        above = grad, torch.zeros_like(totals) if grad_totals is None else grad_totals
        function = functools.partial(_by_reference, sizes)
        grad_x, grad_gates, grad_taps = proof.vector_jacobian(function, (context, gates, taps), above)
        return grad_x.contiguous(), grad_gates.contiguous(), grad_taps

    run = functools.partial(_gradients, grad, grad_totals, context, gates, taps, sizes, z, totals)
    return proof.or_reference(run, by_reference, context, sizes, by_name)


@focal_context_backward.register_fake
def _(
    grad: torch.Tensor,
    grad_totals: torch.Tensor | None,
    context: torch.Tensor,
    gates: torch.Tensor,
    taps: torch.Tensor,
    *_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return context.new_empty(context.shape), gates.new_empty(gates.shape), taps.new_empty(taps.shape)


def _gradients(
    grad: torch.Tensor,
    grad_totals: torch.Tensor | None,
    context: torch.Tensor,
    gates: torch.Tensor,
    taps: torch.Tensor,
    sizes: list[int],
    z: torch.Tensor,
    totals: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    B, H, W, C = context.shape
    x, g, taps, grad = by_pixel(context), by_pixel(gates), taps.contiguous(), grad.contiguous()
    total_gradients = torch.zeros_like(totals) if grad_totals is None else grad_totals.contiguous()
    tile = tiling.convolution_tile(H, W, C)
    place = (B, H, W, C, tile.per_row(W), tile.blocks(H, W), tile.columns(C))
    grad_x = x.new_empty(x.shape)
    gate_parts = taps.new_empty((tile.columns(C), *gates.shape))
    contexts = grad_x.new_empty((len(sizes), *grad_x.shape))
    grad_z = torch.empty_like(contexts)
    with on_device(context.device):
        if tiling.whole_plane(H, W, taps.shape[0]):
            _launch(
                plane_gradient_kernel, B * tile.columns(C), tile,
                grad, x, g, taps, total_gradients, grad_z, contexts, grad_x, gate_parts,
                pixel_stride(x), pixel_stride(g), *place,
                KERNELS=_four_bits(sizes), L=len(sizes), GATES=g.shape[3], TAPS=taps.shape[0],
            )  # fmt: skip
        elif z.numel() == 0:
            raise InputError("focal_context_triton was called with keep=False and cannot be differentiated")
        else:
            _level_gradients(
                grad, total_gradients, g, taps, sizes, z, totals, grad_z, contexts, grad_x, gate_parts, tile, place
            )
        grad_taps = _weight_gradients(x, contexts, grad_z, sizes)
    return grad_x, gate_parts.sum(0).to(gates.dtype), grad_taps


def _level_gradients(
    grad: torch.Tensor,
    total_gradients: torch.Tensor,
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
    place: tuple[int, ...],
) -> None:
    """Launches one kernel per level, from the last to the first; writes to ``grad_z`` ... ``gate_parts``."""
    B, H, W, C = grad.shape
    L, GATES, programs = len(sizes), g.shape[3], B * tile.blocks(H, W) * tile.columns(C)
    if GATES > L:
        parts = taps.new_empty((B, tile.blocks(H, W), C))
        _launch(
            global_gradient_kernel, programs, tile, grad, g, totals, gate_parts, parts, pixel_stride(g), *place, L=L
        )  # fmt: skip
        total_gradients = parts.sum(1)
    _launch(
        last_gradient_kernel, programs, tile,
        grad, z, g, totals, total_gradients, grad_z, contexts, gate_parts, pixel_stride(g), *place, L=L, GATES=GATES,
    )  # fmt: skip
    first = taps.shape[0]
    for level in reversed(range(L)):
        first -= sizes[level] ** 2
        if level > 0:
            _launch(
                level_gradient_kernel, programs, tile,
                grad, z, g, taps[first:], grad_z, contexts, gate_parts, pixel_stride(g), *place,
                K=sizes[level], LEVEL=level - 1, GATES=GATES,
            )  # fmt: skip
    _launch(input_gradient_kernel, programs, tile, grad_z, taps, grad_x, *place[1:], K=sizes[0])


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
            weight_gradient_kernel, chunks * groups * tile.columns(C), tile,
            below, grad_z[level], parts, pixel_stride(below), B, H, W, C, tile.per_row(W), steps,
            tile.columns(C), groups, first, taps, K=k, ROWS=tiling.weight_rows(k),
        )  # fmt: skip
        first += k * k
    return parts.sum(0)


def _launch(kernel: Any, programs: int, tile: Tile, *arguments: Any, **constants: Any) -> None:
    kernel[(programs,)](*arguments, **constants, TW=tile.TW, R=tile.R, BC=tile.BC, num_warps=tile.warps)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Context that makes ``device`` current, since Triton launches on the current GPU."""
    current = device.type != "cuda" or torch.compiler.is_compiling() or device.index == torch.cuda.current_device()
    return contextlib.nullcontext() if current else torch.cuda.device(device)


def by_pixel(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself if channels are contiguous and rows and images follow each other, as in slices of a projection.

    Otherwise a copy.
    """
    B, H, W, C = x.shape
    pixel = pixel_stride(x)
    dense = C == 1 or x.stride(3) == 1
    rows = (W == 1 or x.stride(2) == pixel) and (H == 1 or x.stride(1) == W * pixel)
    return x if dense and rows and (B == 1 or x.stride(0) == H * W * pixel) else x.contiguous()


def pixel_stride(x: torch.Tensor) -> int:
    """The stride between pixels."""
    B, H, W, C = x.shape
    return x.stride(2) if W > 1 else x.stride(1) if H > 1 else x.stride(0) if B > 1 else C


def _four_bits(sizes: list[int]) -> int:
    return sum(k << (4 * level) for level, k in enumerate(sizes))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    context, gates, taps, ctx.sizes, _, ctx.by_name = inputs
    _, z, totals = output
    if gates.shape[3] > len(ctx.sizes):
        ctx.mark_non_differentiable(z, totals)
    else:
        ctx.mark_non_differentiable(z)
    ctx.set_materialize_grads(False)  # otherwise a zero gradient as large as z is created in every step
    ctx.save_for_backward(context, gates, taps, z, totals)


def _backward(ctx: Any, grad: torch.Tensor | None, _: None, grad_totals: torch.Tensor | None) -> tuple[Any, ...]:
    context, gates, taps, z, totals = ctx.saved_tensors
    if grad is None and grad_totals is None:
        return (None,) * 6
    if derivatives.needed(grad, grad_totals):
        by_reference = functools.partial(_by_reference, ctx.sizes)
        return *derivatives.gradients(by_reference, (context, gates, taps), [grad, grad_totals]), None, None, None
    if grad is None:
        grad = torch.zeros_like(context)
    gradients = focal_context_backward(grad, grad_totals, context, gates, taps, ctx.sizes, z, totals, ctx.by_name)
    return *gradients, None, None, None


def _by_reference(
    sizes: list[int], context: torch.Tensor, gates: torch.Tensor, taps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The aggregated context and the sums of the last level by PyTorch's operations."""
    levels = torch.split(taps.to(context.dtype), [k * k for k in sizes])
    weights = [level.t().reshape(-1, 1, k, k) for level, k in zip(levels, sizes, strict=True)]
    out, z = reference.focal_levels(context, gates[..., : len(sizes)], weights)
    if gates.shape[3] > len(sizes):
        out = out + torch.nn.functional.gelu(z.mean((1, 2), keepdim=True)) * gates[..., -1:]
    return out, z.sum((1, 2), dtype=torch.float32)


focal_context.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.focalnet.focal_context_triton)
def _flops(context_shape: torch.Size, gates_shape: torch.Size, taps_shape: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of the convolutions, two per multiply-accumulate, as PyTorch counts."""
    return 2 * math.prod(context_shape[:3]) * math.prod(taps_shape)


@register_flop_formula(torch.ops.focalnet.focal_context_triton_backward)
def _backward_flops(grad_shape: torch.Size, _: Any, *shapes: Any, **__: Any) -> int:
    """Two gradients, each as many as the forward pass, plus recomputed convolutions for a whole plane."""
    height, width = grad_shape[1], grad_shape[2]
    recomputed = tiling.whole_plane(height, width, shapes[2][0])
    return (3 if recomputed else 2) * _flops(*shapes)
