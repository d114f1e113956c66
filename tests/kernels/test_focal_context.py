"""The reference op against the paper's equations written out in another way, and its refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.errors import InputError
from focalnet.kernels import focal_context


def by_hand(context: torch.Tensor, gates: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Pixel by pixel through unfolded windows: nothing in common with a convolution call."""
    z, total = context, torch.zeros_like(context)
    for level, weight in enumerate(weights):
        k = weight.shape[-1]
        padded = F.pad(z, (0, 0, k // 2, k // 2, k // 2, k // 2))
        windows = padded.unfold(1, k, 1).unfold(2, k, 1)  # (B, H, W, C, k, k)
        z = F.gelu((windows * weight.view(-1, k, k)).sum((-1, -2)))
        total = total + z * gates[..., level, None]
    return total + F.gelu(z.mean((1, 2), keepdim=True)) * gates[..., -1, None]


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)),
    kernels=st.lists(st.sampled_from([1, 3, 5, 7, 9]), max_size=4),
    seed=st.integers(0, 2**31),
)
def test_equals_the_equations(shape: tuple[int, int, int, int], kernels: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    context, gates = random(*shape), random(*shape[:3], len(kernels) + 1)
    weights = [random(shape[3], 1, k, k) for k in kernels]
    torch.testing.assert_close(focal_context(context, gates, weights), by_hand(context, gates, weights))


def test_gradients() -> None:
    context = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(3, 1, k, k, dtype=torch.float64, requires_grad=True) for k in (3, 5)]
    assert torch.autograd.gradcheck(lambda c, g, *w: focal_context(c, g, w), (context, gates, *weights))


def test_takes_slices_of_one_projection() -> None:
    whole = torch.randn(2, 6, 6, 11)
    query_free = whole.split((4, 4, 3), -1)
    weights = [torch.randn(4, 1, 3, 3), torch.randn(4, 1, 5, 5)]
    contiguous = [part.contiguous() for part in query_free]
    torch.testing.assert_close(
        focal_context(query_free[1], query_free[2], weights), focal_context(contiguous[1], contiguous[2], weights)
    )


@pytest.mark.parametrize(
    ("gates", "weight", "message"),
    [
        ((1, 4, 4, 3), (2, 1, 3, 3), "gates have 3 channels"),
        ((1, 4, 5, 2), (2, 1, 3, 3), "must be"),
        ((1, 4, 4, 2), (2, 1, 4, 4), "odd k"),
        ((1, 4, 4, 2), (3, 1, 3, 3), "kernel 0"),
    ],
)
def test_refusals(gates: tuple[int, ...], weight: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        focal_context(torch.zeros(1, 4, 4, 2), torch.zeros(gates), [torch.zeros(weight)])
