"""``focal_context``: the operation of focal modulation on the fastest backend that can run it.

It is registered with ``torch.library``, so autograd, autocast and ``torch.compile`` see one operation.
``torch.export`` sees PyTorch's operations of the reference instead, which every runtime supports.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch

from focalnet.errors import InputError
from focalnet.kernels import backend, cpu, reference, triton
from focalnet.kernels.registered import KernelOp
from focalnet.ops import derivatives, modes


def focal_context(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Hierarchical contexts, gated sum and global level in one call; see ``reference.focal_context``.

    Args:
        context: ``(B, H, W, C)``, any strides.
        gates: ``(B, H, W, L + 1)``, raw values; the last is the gate of the global level.
        weights: L depthwise kernels ``(C, 1, k, k)``, k odd.

    Returns:
        ``(B, H, W, C)`` in the dtype of ``context``: the aggregated context.

    Raises:
        InputError: the shapes do not match, or a backend requested by name cannot run.
    """
    reference.check(context, gates, weights)
    name = implementation(context, gates, weights)
    if name == "eager":
        return reference.focal_context(context, gates, weights)
    if name == "triton":
        return triton.focal_context(context, gates, weights)
    out: torch.Tensor = by_native(context, gates, list(weights))
    return out


def implementation(
    context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]
) -> Literal["eager", "native", "triton"]:
    """The backend that ``focal_context`` runs these tensors on.

    Raises:
        InputError: a backend requested by name cannot run.
    """
    requested = backend.current()
    if requested == "eager" or modes.exporting() or modes.transformed() or context.is_meta:
        return "eager"
    name: Literal["native", "triton"]
    name = requested if requested != "auto" else "triton" if context.is_cuda else "native"
    kernels = triton if name == "triton" else cpu
    reason = kernels.why_not(context, gates, weights)
    if reason is None and name == "triton":
        sizes = tuple(weight.shape[-1] for weight in weights)
        reason = missing_triton(context.device, context.dtype, sizes, requested == "auto")
    elif reason is None:
        reason = missing_native()
    if reason is None:
        return name
    if requested == "auto":
        return "eager"
    raise InputError(f"backend {name} was requested but cannot run: {reason}")


@modes.constant
def missing_native() -> str | None:
    """Why the CPU kernels are not available, or None; constant within a process."""
    try:
        cpu.load()
    except InputError as error:
        return str(error)
    return None


@modes.constant
def missing_triton(
    device: torch.device,
    dtype: torch.dtype,
    kernels: tuple[int, ...] | str,
    warn: bool,
    operation: str = triton.FOCAL_CONTEXT,
) -> str | None:
    """Why the GPU kernels of an operation cannot run here, or None.

    Args:
        device: device of the tensors.
        dtype: dtype of the feature maps.
        kernels: kernel sizes of a focal context, or the name of another operation, as in ``triton.proof.deny``.
        warn: whether to warn, once, if the kernels should run here.
        operation: as in ``triton.load``.
    """
    try:
        triton.load(device, dtype, operation)
    except triton.Unusable as error:
        if warn:
            triton.proof.warn(str(error))
        return str(error)
    except InputError as error:
        return str(error)
    return triton.proof.denied(device, dtype, kernels)


@functools.partial(KernelOp, "focalnet::focal_context")
def by_native(context: torch.Tensor, gates: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """``focal_context`` by the CPU kernels, for tensors that ``cpu.why_not`` accepts."""
    return cpu.load().forward(context, gates, weights)


@functools.partial(KernelOp, "focalnet::focal_context_backward")
def _focal_context_backward(
    grad: torch.Tensor, context: torch.Tensor, gates: torch.Tensor, weights: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    return cpu.load().backward(grad, context, gates, weights)


@by_native.op.register_fake
def _(context: torch.Tensor, gates: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    return context.new_empty(context.shape)


@_focal_context_backward.op.register_fake
def _(
    grad: torch.Tensor, context: torch.Tensor, gates: torch.Tensor, weights: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    return context.new_empty(context.shape), gates.new_empty(gates.shape), [w.new_empty(w.shape) for w in weights]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    context, gates, weights = inputs
    ctx.save_for_backward(context, gates, *weights)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, Any, list[Any]]:
    context, gates, *weights = ctx.saved_tensors
    if derivatives.needed(grad):
        inputs = (context, gates, *weights)
        grad_context, grad_gates, *grad_weights = derivatives.gradients(_by_reference, inputs, [grad])
        return grad_context, grad_gates, grad_weights
    gradients: tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]
    gradients = _focal_context_backward(grad, context, gates, weights)
    return gradients


def _by_reference(context: torch.Tensor, gates: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    return reference.focal_context(context, gates, [weight.to(context.dtype) for weight in weights])


by_native.op.register_autograd(_backward, setup_context=_setup_context)
