"""``focalnet::deformable_attention_triton``: launches the kernels of deformable attention, forward and backward.

EXPERIMENTAL: it has never run on a GPU. Imported on use because it needs Triton. Only the inputs are saved for the
backward pass.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from focalnet.kernels.registered import registered
from focalnet.kernels.triton import DEFORMABLE, MAX_SCALES, proof
from focalnet.kernels.triton.deformable_kernels import backward_kernel, forward_kernel
from focalnet.kernels.triton.op import on_device
from focalnet.ops import deformable as reference
from focalnet.ops import derivatives

_NUMBERS = 1024  # rows times channels of a program


@functools.partial(registered, "focalnet::deformable_attention_triton", device_types=None)
def deformable_attention(values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, by_name: bool) -> Tensor:
    """The operation.

    Args:
        values: ``(B, S, H, D)``.
        sizes: height and width of each level, one after the other.
        locations: ``(B, Q, H, L, P, 2)``, float32.
        weights: ``(B, Q, H, L, P)``, float32.
        by_name: whether errors are raised, see ``proof.or_reference``.

    Returns:
        ``(B, Q, H * D)``, float32.
    """

    def by_reference() -> Tensor:
        shapes = list(zip(sizes[::2], sizes[1::2], strict=True))
        return reference.multi_scale_deformable_attention(values, shapes, locations, weights).contiguous()

    run = functools.partial(_forward, values, sizes, locations, weights)
    return proof.or_reference(run, by_reference, values, DEFORMABLE, by_name)


@deformable_attention.register_fake
def _(values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, by_name: bool) -> Tensor:
    batch, queries = weights.shape[:2]
    return weights.new_empty((batch, queries, values.shape[2] * values.shape[3]))


def _forward(values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    values, locations, weights = values.contiguous(), locations.contiguous(), weights.contiguous()
    batch, queries, heads, levels, points = weights.shape
    channels = values.shape[3]
    out = torch.empty((batch, queries, heads * channels), dtype=torch.float32, device=values.device)
    rows = batch * queries * heads
    programs, block = _blocks(rows, channels)
    with on_device(values.device):
        _launch(
            forward_kernel, programs,
            values, locations, weights, out, rows, values.shape[1], queries, *_padded(sizes),
            H=heads, D=channels, L=levels, P=points, **block,
        )  # fmt: skip
    return out


@functools.partial(registered, "focalnet::deformable_attention_triton_backward", device_types=None)
def deformable_attention_backward(
    grad: Tensor, values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, by_name: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values (in their dtype), locations and weights (float32).

    If ``grad`` or ``weights`` contain a value that is not finite, the whole gradient of the values is NaN.
    """

    def by_reference() -> tuple[Tensor, Tensor, Tensor]:
        function = functools.partial(reference.differentiable, sizes)
        grad_values, grad_locations, grad_weights = proof.vector_jacobian(function, (values, locations, weights), grad)
        return grad_values.contiguous(), grad_locations.contiguous(), grad_weights.contiguous()

    run = functools.partial(_gradients, grad, values, sizes, locations, weights)
    return proof.or_reference(run, by_reference, values, DEFORMABLE, by_name)


@deformable_attention_backward.register_fake
def _(
    grad: Tensor, values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, by_name: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return values.new_empty(values.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _gradients(
    grad: Tensor, values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad, values, locations, weights = (x.contiguous() for x in (grad, values, locations, weights))
    batch, queries, heads, levels, points = weights.shape
    channels = values.shape[3]
    # A point adds to a cell at most once, with at most its weight, so that sums in these units fit into 63 bits.
    largest = grad.abs().amax().double() * weights.abs().amax().double() * (queries * points)
    exponent = (62 - largest.log2().ceil()).clamp(-126, 126)
    units = torch.where(largest.isfinite(), exponent.exp2(), torch.nan).float()
    sums = torch.zeros(values.shape, dtype=torch.int64, device=values.device)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    rows = batch * queries * heads
    programs, block = _blocks(rows, channels)
    with on_device(values.device):
        _launch(
            backward_kernel, programs,
            grad, values, locations, weights, units, sums, grad_locations, grad_weights,
            rows, values.shape[1], queries, *_padded(sizes),
            H=heads, D=channels, L=levels, P=points, **block,
        )  # fmt: skip
    return (sums.float() / units).to(values.dtype), grad_locations, grad_weights


def _launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    kernel[(programs,)](*arguments, **constants)


def _blocks(rows: int, channels: int) -> tuple[int, dict[str, int]]:
    """The number of programs, and the block size of each."""
    width = triton.next_power_of_2(channels)
    height = max(1, _NUMBERS // width)
    return -(-rows // height), {"R": height, "BD": width, "num_warps": 4}


def _padded(sizes: list[int]) -> list[int]:
    """Sizes, padded to the number of levels that the kernels have parameters for."""
    return [*sizes, *[1] * (2 * MAX_SCALES - len(sizes))]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, ctx.sizes, locations, weights, ctx.by_name = inputs
    ctx.save_for_backward(values, locations, weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, locations, weights = ctx.saved_tensors
    if derivatives.needed(grad):
        by_reference = functools.partial(reference.differentiable, ctx.sizes)
        grads = derivatives.gradients(by_reference, (values, locations, weights), [grad])
    else:
        grads = list(deformable_attention_backward(grad, values, ctx.sizes, locations, weights, ctx.by_name))
    return grads[0], None, grads[1], grads[2], None


deformable_attention.register_autograd(_differentiate, setup_context=_keep)
