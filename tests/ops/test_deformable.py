"""Deformable attention: two ways to compute it, by hand, and transformers' function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention as by_transformers

from focalnet.errors import InputError
from focalnet.kernels import backend
from focalnet.nn.deformable import DeformableAttention
from focalnet.ops.deformable import by_gathering, by_sampling, multi_scale_deformable_attention

SHAPES = [(4, 5), (2, 3), (1, 1)]
sides = st.integers(1, 6)


def example(
    shapes: Any = SHAPES, batch: int = 2, queries: int = 7, heads: int = 2, points: int = 3, seed: int = 0
) -> Any:
    """Values, shapes, locations (some beyond the edges) and weights, in float64 and with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    values = random(batch, sum(h * w for h, w in shapes), heads, 4) - 0.5
    grid = batch, queries, heads, len(shapes), points
    locations, weights = random(*grid, 2) * 2 - 0.5, random(*grid)
    return values.requires_grad_(), shapes, locations.requires_grad_(), weights.requires_grad_()


@settings(max_examples=40)
@given(
    shapes=st.lists(st.tuples(sides, sides), min_size=1, max_size=3),
    batch=st.integers(1, 3),
    queries=st.integers(1, 5),
    heads=st.integers(1, 3),
    points=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_gathering_equals_sampling(shapes: Any, batch: int, queries: int, heads: int, points: int, seed: int) -> None:
    values, _, locations, weights = inputs = example(shapes, batch, queries, heads, points, seed)
    ours, truth = by_gathering(*inputs), by_sampling(*inputs)
    torch.testing.assert_close(ours, truth)
    up = torch.rand_like(truth)
    for a, b in zip(
        torch.autograd.grad(ours, (values, locations, weights), up),
        torch.autograd.grad(truth, (values, locations, weights), up),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("compute", [by_gathering, by_sampling])
def test_edges(compute: Any) -> None:
    """On a map of 2 x 2 ones, exactly on, half out of and out of the map; so are the gradients of both ways."""
    places = [0.25, 0.0, -0.25, -0.3, 1.0, 1.25, 1.3, -torch.inf, torch.inf]
    expected = [1.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    locations = torch.tensor([[x, 0.5] for x in places], dtype=torch.float64)[None, :, None, None, None]
    ones, weights = torch.ones(1, 4, 1, 1, dtype=torch.float64), torch.ones(locations.shape[:-1], dtype=torch.float64)
    if compute is by_sampling:  # grid_sample knows no infinity
        locations, expected = locations[:, :-2], expected[:-2]
        weights = weights[:, :-2]
    locations.requires_grad_()
    out = compute(ones, [(2, 2)], locations, weights)
    torch.testing.assert_close(out.flatten(), torch.tensor(expected, dtype=torch.float64))
    out.sum().backward()
    slopes = torch.tensor([0.0, 2.0, 2.0, 0.0, -2.0, 0.0, 0.0], dtype=torch.float64)  # from the right, as grid_sample
    torch.testing.assert_close(locations.grad[0, :7, 0, 0, 0, 0], slopes)


def test_a_cell_centre_is_its_value() -> None:
    values = torch.arange(6.0).view(1, 6, 1, 1)
    locations = torch.tensor([2.5 / 3, 1.5 / 2]).view(1, 1, 1, 1, 1, 2)
    out = multi_scale_deformable_attention(values, [(2, 3)], locations, torch.full((1, 1, 1, 1, 1), 2.0))
    assert float(out) == pytest.approx(10.0)


def test_gradients() -> None:
    values, shapes, locations, weights = example([(2, 3)], 1, 2, 1, 2)
    for compute in (by_gathering, by_sampling):
        assert torch.autograd.gradcheck(lambda v, p, w, f=compute: f(v, shapes, p, w), (values, locations, weights))


def test_equals_transformers() -> None:
    inputs = example()
    torch.testing.assert_close(multi_scale_deformable_attention(*inputs), by_transformers(*inputs))


def test_float32_within_autocast() -> None:
    values, shapes, locations, weights = (x.detach().float() if isinstance(x, Tensor) else x for x in example())
    exact = multi_scale_deformable_attention(values, shapes, locations, weights)
    for which in ("auto", "eager"):
        with torch.autocast("cpu", torch.bfloat16), backend.use(which):
            out = multi_scale_deformable_attention(values, shapes, locations, weights)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, exact)
    half = multi_scale_deformable_attention(values.bfloat16(), shapes, locations.bfloat16(), weights.bfloat16())
    assert half.dtype == torch.float32


def test_export_sees_operations_that_every_runtime_knows() -> None:
    layer = DeformableAttention(8, heads=2, levels=2, points=2)
    shapes = [(3, 4), (2, 2)]

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, references: Tensor) -> Tensor:
            return self.layer(x, x, shapes, references)

    x, references = torch.rand(1, 16, 8), torch.rand(1, 16, 1, 2)
    exported = torch.export.export(Fixed(), (x, references))
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any("grid_sampler" in name for name in called)
    assert not any("embedding_bag" in name for name in called)
    torch.testing.assert_close(exported.module()(x, references), layer(x, x, shapes, references))


def test_at_first_heads_look_around() -> None:
    layer = DeformableAttention(8, heads=4, levels=2, points=3)
    offsets = layer.sampling_offsets(torch.rand(8)).view(4, 2, 3, 2)
    right = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    torch.testing.assert_close(offsets[0], right.expand(2, -1, -1))
    torch.testing.assert_close(offsets[1, 0, :, ::1], right.flip(-1), atol=1e-6, rtol=0)


def test_shapes_that_do_not_fit() -> None:
    values, shapes, locations, weights = example()
    with pytest.raises(InputError, match="do not match the levels"):
        multi_scale_deformable_attention(values, shapes[:2], locations, weights)
    with pytest.raises(InputError, match="2 heads and 3 levels"):
        multi_scale_deformable_attention(values, shapes, locations[:, :, :1], weights)
