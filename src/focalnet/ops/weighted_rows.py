"""Weighted sums of table rows, by which bilinear sampling is computed once cells and weights are known."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.ops import derivatives, modes


def weighted_rows(table_RD: Tensor, rows_K: Tensor, weights_K: Tensor, starts_N: Tensor) -> Tensor:
    """Weighted sum of table rows for each of N bags: ``(N, D)``.

    The forward pass is PyTorch's embedding bag, which is multi-threaded. The gradient of the table is another embedding
    bag, with rows and bags exchanged: PyTorch's own is slower and has neither second nor forward-mode derivatives.

    Args:
        table_RD: table of R rows.
        rows_K: int32 or int64, row indices of all bags, concatenated.
        weights_K: floating point, weight of each index.
        starts_N: start of each bag in ``rows_K``, ascending from 0, of the dtype of ``rows_K``.
    """
    if modes.transformed():
        return _by_index_add(table_RD, weights_K, rows_K, starts_N)
    out: Tensor = _WeightedRows.apply(table_RD, weights_K, rows_K, starts_N)
    return out


class _WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, weights: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(table, weights, rows, starts)
        return _sums(table, rows, weights, starts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        table, weights, rows, starts = ctx.saved_tensors
        if derivatives.needed(grad):
            grad_table, grad_weights, *_ = derivatives.gradients(_by_index_add, ctx.saved_tensors, [grad])
            return grad_table, grad_weights, None, None
        grad_table = grad_weights = None
        bag = _bag_of_each(rows, starts)
        if ctx.needs_input_grad[0]:
            by_row = rows.sort(stable=True)
            first = torch.searchsorted(by_row.values, torch.arange(len(table), dtype=rows.dtype, device=rows.device))
            grad_table = _sums(grad, bag[by_row.indices], weights[by_row.indices], first)
        if ctx.needs_input_grad[1]:
            grad_weights = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, table, rows, starts.to(rows.dtype), bag.to(rows.dtype), 0
            )
        return grad_table, grad_weights, None, None


def _sums(table: Tensor, rows: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    return F.embedding_bag(rows, table, starts.to(rows.dtype), mode="sum", per_sample_weights=weights)


def _by_index_add(table: Tensor, weights: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
    out = table.new_zeros(len(starts), table.shape[1])
    return out.index_add(0, _bag_of_each(rows, starts), table[rows] * weights[:, None])


def _bag_of_each(rows: Tensor, starts: Tensor) -> Tensor:
    positions = torch.arange(len(rows), dtype=starts.dtype, device=rows.device)
    return torch.searchsorted(starts.contiguous(), positions, right=True) - 1
