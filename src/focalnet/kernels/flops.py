"""How many operations our kernels compute, for PyTorch's ``FlopCounterMode``; imported after its module.

As PyTorch does, it counts two for each multiply-accumulate.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from focalnet.kernels import dispatch  # noqa: F401  # registers the operations
from focalnet.kernels.matmul import ONEDNN


@register_flop_formula(torch.ops.focalnet.focal_context)
def _context(context_shape: torch.Size, gates_shape: torch.Size, weight_shapes: list[torch.Size], **_: Any) -> int:
    """Those of the convolutions."""
    return 2 * math.prod(context_shape[:3]) * sum(math.prod(shape) for shape in weight_shapes)


@register_flop_formula(torch.ops.focalnet.focal_context_backward)
def _context_backward(grad_shape: torch.Size, *shapes: Any, **_: Any) -> int:
    """Three convolutions for each one of the forward pass: its recomputation and two gradients."""
    return 3 * _context(*shapes)


if ONEDNN and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _linear(x_shape: torch.Size, *shapes: Any, out_shape: torch.Size, **_: Any) -> int:
        return 2 * x_shape.numel() * out_shape[-1]

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _convolution(x_shape: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
        return 2 * out_shape.numel() * weight[1:].numel()

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise_)
    def _convolution_and_sum(residual: torch.Size, x_shape: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * residual.numel() * weight[1:].numel()


if ONEDNN and torch.ops.onednn.qlinear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.onednn.qlinear_pointwise)
    def _int8_linear(x_shape: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
        return 2 * x_shape.numel() * out_shape[-1]
