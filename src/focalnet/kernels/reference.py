"""Reference implementation of the focal context, written as in the paper; all kernels are tested against it.

Shapes: B batch, H height, W width, C channels, L focal levels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from focalnet.errors import InputError


def focal_context(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Hierarchical contextualization and gated aggregation (Yang et al. 2022, equations 4 and 5).

    Level l computes ``z_l = GELU(depthwise_conv_l(z_{l-1}))`` with ``z_0 = context``; the last level is
    averaged over the feature map, ``z_{L+1} = GELU(mean(z_L))``; the result is ``sum_l gates_l * z_l``.

    Args:
        context: ``(B, H, W, C)``, any strides.
        gates: ``(B, H, W, L + 1)``, raw values; the last is the gate of the global level.
        weights: L depthwise kernels ``(C, 1, k, k)``, k odd.

    Returns:
        ``(B, H, W, C)``: the aggregated context, before the projection ``h``.

    Raises:
        InputError: the shapes or devices do not match.
    """
    check(context, gates, weights)
    if not weights:
        return F.gelu(context.mean((1, 2), keepdim=True)) * gates
    gated, z = focal_levels(context, gates[..., :-1], weights)
    return gated + F.gelu(z.mean((1, 2), keepdim=True)) * gates[..., -1:]


def focal_levels(
    context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The levels of ``focal_context`` without the global one; ``gates`` has L channels.

    Returns:
        The gated sum of the levels and the context of the last, both ``(B, H, W, C)``.
    """
    z, gated = context, []
    for level, weight in enumerate(weights):
        z_BCHW = F.conv2d(z.permute(0, 3, 1, 2), weight, padding=weight.shape[-1] // 2, groups=weight.shape[0])
        z = F.gelu(z_BCHW.permute(0, 2, 3, 1))
        gated.append(z * gates[..., level : level + 1])
    return functools.reduce(torch.add, gated), z


def check(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> None:
    """Raises InputError if shapes or devices do not match; the message is the same on every backend."""
    if any(
        tensor.device != context.device for tensor in (gates, *weights)
    ):  # with weights on meta, PyTorch would return zeros
        devices = ", ".join(str(tensor.device) for tensor in (gates, *weights))
        raise InputError(f"context is on {context.device}, gates and kernels are on {devices}")
    if context.ndim != 4 or gates.ndim != 4 or context.shape[:3] != gates.shape[:3]:
        raise InputError(
            f"context {tuple(context.shape)} and gates {tuple(gates.shape)} must be (B, H, W, C) and (B, H, W, L + 1)"
        )
    if gates.shape[3] != len(weights) + 1:
        raise InputError(
            f"gates have {gates.shape[3]} channels, {len(weights)} kernels need {len(weights) + 1}: "
            "one for each level and one for the global level"
        )
    for level, weight in enumerate(weights):
        k = weight.shape[-1]
        if weight.shape != (context.shape[3], 1, k, k) or k % 2 == 0:
            raise InputError(
                f"kernel {level} is {tuple(weight.shape)}, expected ({context.shape[3]}, 1, k, k) with odd k"
            )
