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
from torch.autograd import forward_ad
from torch.library import triton_op

from focalnet.errors import InputError
from focalnet.kernels import backend
from focalnet.kernels.triton import DEFORMABLE, MAX_SCALES, proof
from focalnet.kernels.triton.deformable_kernels import backward_kernel, forward_kernel
from focalnet.kernels.triton.op import on_device, wrap_triton
from focalnet.ops import deformable as reference
from focalnet.ops import derivatives

_NUMBERS = 1024  # rows times channels of a program


@triton_op("focalnet::deformable_attention_triton", mutates_args=())
def deformable_attention(values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The operation.

    Args:
        values: ``(B, S, H, D)``.
        sizes: height and width of each level, one after the other.
        locations: ``(B, Q, H, L, P, 2)``, float32.
        weights: ``(B, Q, H, L, P)``, float32.

    Returns:
        ``(B, Q, H * D)``, float32.
    """
    if forward_ad._current_level >= 0:  # PyTorch would silently drop the tangent
        raise InputError(
            "deformable_attention_triton has no forward-mode derivative: call kernels.deformable_attention, which has"
        )
    values, locations, weights = values.contiguous(), locations.contiguous(), weights.contiguous()
    batch, queries, heads, levels, points = weights.shape
    channels = values.shape[3]
    out = torch.empty((batch, queries, heads * channels), dtype=torch.float32, device=values.device)
    rows = batch * queries * heads
    programs, block = _blocks(rows, channels)
    with on_device(values.device):
        _launch(
            wrap_triton(forward_kernel), programs,
            values, locations, weights, out, rows, values.shape[1], queries, *_padded(sizes),
            H=heads, D=channels, L=levels, P=points, **block,
        )  # fmt: skip
    return out


@triton_op("focalnet::deformable_attention_triton_backward", mutates_args=())
def deformable_attention_backward(
    grad: Tensor, values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values (in their dtype), locations and weights (float32).

    If ``grad`` or ``weights`` contain a value that is not finite, the whole gradient of the values is NaN.
    """
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
            wrap_triton(backward_kernel), programs,
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
    values, ctx.sizes, locations, weights = inputs
    ctx.by_name = backend.current() == "triton"  # read here because the backward pass has its own thread
    ctx.save_for_backward(values, locations, weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, locations, weights = ctx.saved_tensors
    if not derivatives.needed(grad):
        try:
            found = deformable_attention_backward(grad, values, ctx.sizes, locations, weights)
            return found[0], None, found[1], found[2]
        except (torch.OutOfMemoryError, InputError):
            raise
        except Exception as error:  # compilers, drivers and caches may raise any exception
            if ctx.by_name or torch.compiler.is_compiling():
                raise
            proof.deny(values.device, values.dtype, DEFORMABLE, error)
    by_reference = functools.partial(reference.differentiable, ctx.sizes)
    grads = derivatives.gradients(by_reference, (values, locations, weights), [grad])
    return grads[0], None, grads[1], grads[2]


deformable_attention.register_autograd(_differentiate, setup_context=_keep)
