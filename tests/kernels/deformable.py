"""Inputs of deformable attention for tests, and what to compare of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SHAPES = [(4, 5), (2, 3), (1, 1)]
Inputs = tuple[Tensor, Sequence[tuple[int, int]], Tensor, Tensor]


def example(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    batch: int = 2,
    queries: int = 7,
    heads: int = 2,
    points: int = 3,
    channels: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Values of ``dtype``, shapes, locations (some beyond the edges) and weights.

    Locations stay away from the centers of cells, where rounding decides on which side a slope is taken.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, sum(h * w for h, w in shapes), heads, channels, generator=generator)
    grid = batch, queries, heads, len(shapes), points
    extents = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32)[:, None]
    squares = (torch.rand(*grid, 2, generator=generator) * (extents + 2)).floor() - 1
    locations = (squares + 0.55 + 0.9 * torch.rand(*grid, 2, generator=generator)) / extents
    return values.to(dtype), shapes, locations, torch.rand(grid, generator=generator)


def exact(inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Copies that require gradients, of another dtype if one is given."""
    values, shapes, locations, weights = inputs
    copies = [x.detach().clone(memory_format=torch.preserve_format) for x in (values, locations, weights)]
    leaves = [x.to(x.dtype if dtype is None else dtype).requires_grad_() for x in copies]
    return leaves[0], shapes, leaves[1], leaves[2]


def differentiated(function: Callable[..., Tensor], inputs: Inputs, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Output, and gradients of values, locations and weights."""
    values, shapes, locations, weights = exact(inputs, dtype)
    out = function(values, shapes, locations, weights)
    up = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).cos().mul(3).sin().view(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, (values, locations, weights), up)]


def worst(actual: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """The largest error of each."""
    return [float((a.double() - t).abs().max()) for a, t in zip(actual, truth, strict=True)]
