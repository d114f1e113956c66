"""Row-wise operations on the CPU kernels, if possible: layer norm, gradients of GELU and of biases.

PyTorch's own are slower in bfloat16, above all in the backward pass, and sum gradients of a norm's parameters in
bfloat16.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F

from focalnet.kernels import backend, cpu
from focalnet.kernels.cpu import arguments
from focalnet.kernels.registered import KernelOp
from focalnet.ops import derivatives, modes

# Numbers of elements from which the kernels save more time than their call costs.
_LARGE_NORM, _LARGE_SUM = 2**17, 2**20


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm over the last axis, as ``torch.nn.functional.layer_norm``.

    Args:
        x: ``(..., C)``.
        weight: ``(C,)``, in the dtype of x or float32.
        bias: ``(C,)``, in the dtype of weight.
        eps: added to the variance.
    """
    if torch.is_grad_enabled() or x.numel() >= _LARGE_NORM:
        return fork_and_norm(x, weight, bias, eps)[1]
    return torch.layer_norm(x, weight.shape, weight, bias, eps)


def fork_and_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` and its layer norm, for a residual branch: the norm's backward pass also adds the residual gradient.

    Arguments as in ``layer_norm``. Compilers, tracers and others that intercept single operations see PyTorch's norm.
    """
    grad = torch.is_grad_enabled()
    worth_it = grad or x.numel() >= _LARGE_NORM
    fits = weight.shape == bias.shape == x.shape[-1:] and weight.dtype in (x.dtype, torch.float32)
    if not (worth_it and fits and modes.unobserved() and by_kernels(x, weight, bias)):
        return x, F.layer_norm(x, weight.shape, weight, bias, eps)
    if not grad:
        return x, _layer_norm(x, weight, bias, eps)[0]
    fork, normed = _ForkAndNorm.apply(x, weight, bias, eps)
    return fork, normed


def gelu_gradient(
    grad: torch.Tensor, x: torch.Tensor, *, recompute: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The gradient of GELU's input, its sum over all rows, and the output of GELU if it is to be recomputed.

    Args:
        grad: gradient of the output, like x.
        x: ``(..., C)``.
        recompute: whether to recompute the output; otherwise None is returned for it.
    """
    if by_kernels(x, grad) and grad.dtype == x.dtype:
        grad_x, total, output = _gelu_backward(grad, x, recompute)
        return grad_x, total.to(x.dtype), output if recompute else None
    grad_x = torch.ops.aten.gelu_backward(grad, x)
    return grad_x, grad_x.flatten(0, -2).sum(0), F.gelu(x) if recompute else None


def column_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of ``(..., C)`` over all axes but the last."""
    large = x.numel() >= _LARGE_SUM
    return _column_sum(x).to(x.dtype) if large and by_kernels(x) else x.flatten(0, -2).sum(0)


def by_kernels(x: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether the CPU kernels can run on these tensors; only ``x`` must have one of their dtypes."""
    return (
        x.dtype in arguments.DTYPES
        and x.numel() > 0
        and modes.on_cpu(x, *others)
        and not modes.exporting()
        and not modes.transformed()
        and backend.current() in ("auto", "native")
        and cpu.built()
    )


class _ForkAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, moments = _layer_norm(x, weight, bias, eps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.eps = eps
        return x, normed

    @staticmethod
    def backward(ctx: Any, grad_fork: torch.Tensor | None, grad: torch.Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return grad_fork, None, None, None
        x, weight, bias, moments = ctx.saved_tensors
        if derivatives.needed(grad, grad_fork):
            norm = functools.partial(torch.layer_norm, normalized_shape=weight.shape, eps=ctx.eps)
            grad_x, *others = derivatives.gradients(
                lambda x, w, b: norm(x, weight=w, bias=b), (x, weight, bias), [grad]
            )
            return grad_x if grad_x is None or grad_fork is None else grad_x + grad_fork, *others, None
        grad_x, (grad_weight, grad_bias) = _layer_norm_backward(grad, x, weight, moments, grad_fork)
        return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None


@functools.partial(KernelOp, "focalnet::layer_norm")
def _layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return cpu.load().layer_norm(x, weight, bias, eps)


@_layer_norm.op.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.shape[:-1].numel(), 2), dtype=torch.float32)


@functools.partial(KernelOp, "focalnet::layer_norm_backward")
def _layer_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, moments: torch.Tensor, residual_grad: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return cpu.load().layer_norm_backward(grad, x, weight, moments, residual_grad)


@_layer_norm_backward.op.register_fake
def _(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, moments: torch.Tensor, residual_grad: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty((2, x.shape[-1]), dtype=torch.float32)


@functools.partial(KernelOp, "focalnet::gelu_backward")
def _gelu_backward(
    grad: torch.Tensor, x: torch.Tensor, recompute: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return cpu.load().gelu_backward(grad, x, recompute=recompute)


@_gelu_backward.op.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, recompute: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = x.new_empty(x.shape[-1:], dtype=torch.float32)
    return x.new_empty(x.shape), total, x.new_empty(x.shape if recompute else 0)


@functools.partial(KernelOp, "focalnet::column_sum")
def _column_sum(x: torch.Tensor) -> torch.Tensor:
    return cpu.load().column_sum(x)


@_column_sum.op.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[-1:], dtype=torch.float32)
