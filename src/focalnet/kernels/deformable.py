"""Multi-scale deformable attention on the fastest available backend.

The reference is ``ops.deformable.multi_scale_deformable_attention``, which also runs under ``torch.export``,
``torch.jit``, ``torch.func`` and forward-mode AD. The kernels save only their inputs for the backward pass.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from focalnet.errors import InputError
from focalnet.kernels import backend, cpu, triton
from focalnet.kernels.dispatch import missing_native, missing_triton
from focalnet.kernels.registered import KernelOp
from focalnet.ops import deformable as reference
from focalnet.ops import derivatives, modes
from focalnet.ops.deformable import Shapes


def deformable_attention(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """For each query and head, the weighted sum of values sampled bilinearly at points of every level.

    Args:
        values: ``(B, S, H, D)``, the levels concatenated, each row by row; any strides.
        shapes: height and width of each of the L levels.
        locations: ``(B, Q, H, L, P, 2)``, x and y relative to the level's size: 0 and 1 are its outer edges. Values
            outside are zero.
        weights: ``(B, Q, H, L, P)``, the weight of each point.

    Returns:
        ``(B, Q, H * D)``; float32, or float64 if one of the tensors is.

    Raises:
        InputError: shapes that do not fit together, or a backend requested by name that cannot run.
    """
    reference.check(values, shapes, locations, weights)
    requested = backend.current()
    tensors = (values, locations, weights)
    plain = modes.exporting() or modes.transformed() or values.is_meta or not modes.ordinary(*tensors)
    if requested == "eager" or plain:
        return reference.multi_scale_deformable_attention(values, shapes, locations, weights)
    name = requested if requested != "auto" else "triton" if values.is_cuda else "native"
    reason = (triton if name == "triton" else cpu).why_not_deformable(values, shapes, locations, weights)
    if reason is None and name == "triton":
        warn = requested == "auto"
        reason = missing_triton(values.device, values.dtype, triton.DEFORMABLE, warn, operation=triton.DEFORMABLE)
    elif reason is None:
        reason = missing_native()
    if reason is not None:
        if requested == "auto":
            return reference.multi_scale_deformable_attention(values, shapes, locations, weights)
        raise InputError(f"backend {name} was requested but cannot run: {reason}")
    sizes = [side for shape in shapes for side in shape]
    locations, weights = locations.float(), weights.float()
    if name == "triton":
        return triton.deformable_attention(values, sizes, locations, weights)
    if values.dtype == torch.float16:  # the CPU kernels read float32 and bfloat16
        values = values.float()
    out: Tensor = by_native(values, sizes, locations, weights)
    return out


@functools.partial(KernelOp, "focalnet::deformable_attention")
def by_native(values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """``deformable_attention`` by the CPU kernels; ``sizes`` has height and width of each level in turn."""
    return cpu.load().deformable_attention(values, sizes, locations, weights)


@functools.partial(KernelOp, "focalnet::deformable_attention_backward")
def _deformable_attention_backward(
    grad: Tensor, values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return cpu.load().deformable_attention_backward(grad, values, sizes, locations, weights)


@by_native.op.register_fake
def _(values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries = weights.shape[:2]
    return values.new_empty((batch, queries, values.shape[2] * values.shape[3]), dtype=torch.float32)


@_deformable_attention_backward.op.register_fake
def _(
    grad: Tensor, values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return values.new_empty(values.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(values, locations, weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, locations, weights = ctx.saved_tensors
    if derivatives.needed(grad):
        by_reference = functools.partial(reference.differentiable, ctx.sizes)
        grads = derivatives.gradients(by_reference, (values, locations, weights), [grad])
    else:
        grads = list(_deformable_attention_backward(grad, values, ctx.sizes, locations, weights))
    return grads[0], None, grads[1], grads[2]


by_native.op.register_autograd(_differentiate, setup_context=_keep)
