"""From the projection ``f`` to the modulated query, shared by our fused modules and those of timm and transformers.

Here the forms of the GPU kernels that are to be decided on a GPU (``triton.forms``) take effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from focalnet.errors import InputError
from focalnet.kernels import backend, triton
from focalnet.kernels.dispatch import focal_context, implementation, missing_triton
from focalnet.kernels.triton import forms

# Triton knows of a stride only whether 16 divides it: a multiple of 8 would be aligned, but not known to be.
ALIGNED = 16
LinearFunction = Callable[..., torch.Tensor]


def project(
    linear: LinearFunction, x: torch.Tensor, f: Any, split: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, context and gates: slices of the projection ``f``, whose columns may be padded for the GPU kernels.

    Args:
        linear: computes a linear layer, as ``torch.nn.functional.linear``.
        x: ``(B, H, W, C)``.
        f: weight ``(2 C + L + 1, C)`` and bias.
        split: numbers of columns, ``(C, C, L + 1)``.
    """
    weight, bias = f
    spare = -sum(split) % ALIGNED
    if spare and forms.chosen(forms.PADDED) and (x.is_cuda or backend.current() == "triton"):
        weight, bias = F.pad(weight, (0, 0, 0, spare)), F.pad(bias, (0, spare))
        query, context, gates, _ = linear(x, weight, bias).split_with_sizes((*split, spare), -1)
    else:
        query, context, gates = linear(x, weight, bias).split_with_sizes(split, -1)
    return query, context, gates


def modulator(
    linear: LinearFunction,
    context: torch.Tensor,
    gates: torch.Tensor,
    kernels: Sequence[torch.Tensor],
    h: Any,
    normalize: bool,
) -> torch.Tensor:
    """The projection ``h`` of the aggregated context, ``(B, H, W, C)``.

    Args:
        linear: computes a linear layer, as ``torch.nn.functional.linear``.
        context: ``(B, H, W, C)``.
        gates: ``(B, H, W, L + 1)``.
        kernels: the L depthwise kernels.
        h: weight ``(C, C)`` and bias.
        normalize: whether the aggregated context is divided by L + 1.
    """
    aggregated = focal_context(context, gates, kernels)
    if normalize:
        aggregated = aggregated / (len(kernels) + 1)
    return linear(aggregated, *h)


def modulated_query(
    linear: LinearFunction,
    query: torch.Tensor,
    context: torch.Tensor,
    gates: torch.Tensor,
    kernels: Sequence[torch.Tensor],
    h: Any,
    normalize: bool,
) -> torch.Tensor:
    """``query * modulator(...)``; with the global level as a rank-1 term where that form was chosen.

    Raises:
        InputError: the backend ``triton`` was requested by name, and the kernels of this form cannot run.
    """
    if _takes_rank_one(context, gates, kernels):
        return by_rank_one(linear, query, context, gates, kernels, h, normalize)
    return query * modulator(linear, context, gates, kernels, h, normalize)


def by_rank_one(
    linear: LinearFunction,
    query: torch.Tensor,
    context: torch.Tensor,
    gates: torch.Tensor,
    kernels: Sequence[torch.Tensor],
    h: Any,
    normalize: bool,
) -> torch.Tensor:
    """``modulated_query`` by the GPU kernels, for at least one level; see ``triton.forms``."""
    weight, bias = h
    out, totals = triton.levels(context, gates[..., :-1], kernels)
    mean = totals / (context.shape[1] * context.shape[2])
    everywhere = F.gelu(mean)
    if normalize:
        out, everywhere = out / (len(kernels) + 1), everywhere / (len(kernels) + 1)
    v = F.linear(everywhere.to(weight.dtype), weight).float()
    return triton.rank_one_product(query, linear(out, weight, bias), gates[..., -1:], v)


def _takes_rank_one(context: torch.Tensor, gates: torch.Tensor, kernels: Sequence[torch.Tensor]) -> bool:
    if not kernels or not forms.chosen(forms.RANK_ONE) or implementation(context, gates, kernels) != "triton":
        return False
    requested = backend.current()
    reason = missing_triton(
        context.device, context.dtype, triton.RANK_ONE, requested == "auto", operation=triton.RANK_ONE
    )
    if reason is not None and requested != "auto":
        raise InputError(f"backend {requested} was requested but cannot run the rank-1 global level: {reason}")
    return reason is None
