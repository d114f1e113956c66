"""Weighted sums of rows of a table: what is left of bilinear sampling once the cells and their shares are known."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.ops import derivatives, modes


def weighted_rows(table_RD: Tensor, rows_K: Tensor, share_K: Tensor, starts_N: Tensor) -> Tensor:
    """For each of N bags the sum of its rows of the table, each times its share: ``(N, D)``.

    An embedding bag: whole rows are added up with all threads. PyTorch's gradient of the table is slower than one more
    embedding bag with rows and bags exchanged, and has no derivative of its own; nor has it a forward-mode one.

    Args:
        table_RD: R rows.
        rows_K: int32 or int64, of all bags end to end.
        share_K: of each, floating point.
        starts_N: where each bag starts in ``rows_K``, ascending, the first 0, of the dtype of ``rows_K``.
    """
    if modes.transformed():
        return _plain(table_RD, share_K, rows_K, starts_N)
    out: Tensor = _WeightedRows.apply(table_RD, share_K, rows_K, starts_N)
    return out


class _WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, share: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(table, share, rows, starts)
        return _sums(table, rows, share, starts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        table, share, rows, starts = ctx.saved_tensors
        if derivatives.wanted(grad):
            grad_table, grad_share, *_ = derivatives.gradients(_plain, ctx.saved_tensors, [grad])
            return grad_table, grad_share, None, None
        grad_table = grad_share = None
        bag = _bag_of_each(rows, starts)
        if ctx.needs_input_grad[0]:
            by_row = rows.sort(stable=True)
            first = torch.searchsorted(by_row.values, torch.arange(len(table), dtype=rows.dtype, device=rows.device))
            grad_table = _sums(grad, bag[by_row.indices], share[by_row.indices], first)
        if ctx.needs_input_grad[1]:
            grad_share = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, table, rows, starts.to(rows.dtype), bag.to(rows.dtype), 0
            )
        return grad_table, grad_share, None, None


def _sums(table: Tensor, rows: Tensor, share: Tensor, starts: Tensor) -> Tensor:
    return F.embedding_bag(rows, table, starts.to(rows.dtype), mode="sum", per_sample_weights=share)


def _plain(table: Tensor, share: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
    out = table.new_zeros(len(starts), table.shape[1])
    return out.index_add(0, _bag_of_each(rows, starts), table[rows] * share[:, None])


def _bag_of_each(rows: Tensor, starts: Tensor) -> Tensor:
    place = torch.arange(len(rows), dtype=starts.dtype, device=rows.device)
    return torch.searchsorted(starts.contiguous(), place, right=True) - 1
