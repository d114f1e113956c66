"""What PyTorch's ``FlopCounterMode`` counts for our operations on CPUs, two FLOPs per multiply-accumulate.

``focalnet.kernels`` imports this file after ``torch.utils.flop_counter``, which imports Triton if there is one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from focalnet.kernels import matmul


@register_flop_formula(torch.ops.focalnet.focal_context)
def _context(context_shape: torch.Size, gates_shape: torch.Size, weight_shapes: list[torch.Size], **_: Any) -> int:
    """Of the convolutions."""
    return 2 * math.prod(context_shape[:3]) * sum(math.prod(shape) for shape in weight_shapes)


@register_flop_formula(torch.ops.focalnet.focal_context_backward)
def _context_backward(grad_shape: torch.Size, *shapes: Any, **_: Any) -> int:
    """Three convolutions for each one of the forward pass: its recomputation and two gradients."""
    return 3 * _context(*shapes)


if matmul.ONEDNN and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _linear(x_shape: torch.Size, *shapes: Any, out_shape: torch.Size, **_: Any) -> int:
        return 2 * x_shape.numel() * out_shape[-1]

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _conv(x_shape: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
        return 2 * out_shape.numel() * weight[1:].numel()

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise_)
    def _conv_add(residual: torch.Size, x_shape: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * residual.numel() * weight[1:].numel()


if matmul.ONEDNN and torch.ops.onednn.qlinear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.onednn.qlinear_pointwise)
    def _int8_linear(x_shape: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
        return 2 * x_shape.numel() * out_shape[-1]
