"""Convolutions where PyTorch's own gradient is not to be trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from focalnet.nn.conv import ConvNorm, no_single_cells
from focalnet.nn.patch_embed import PatchEmbed


def spoil_memory() -> None:
    """What is allocated next lies where NaN was."""
    freed = [torch.full((16 * 16 * 9 + 7 * i,), torch.nan) for i in range(8)]
    del freed


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (4, 1), (2, 2), (3, 5)])
@pytest.mark.parametrize("build", ["pyramid", "patch embedding"])
def test_gradients_of_the_smallest_maps_are_finite_in_bfloat16(build: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer: Any
    if build == "pyramid":
        layer = ConvNorm(16, 16, 3, stride=2, relu=False)
        weight = layer.conv.weight
    else:
        layer = PatchEmbed(16, 16, stride=2, kernel=3, padding=1, norm=False)
        weight = layer.proj.weight
    x = torch.randn(2, 16, *size)
    expected = layer(x)
    (exact,) = torch.autograd.grad(expected.sum(), weight)
    for _ in range(40):
        spoil_memory()
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x)
        (gradient,) = torch.autograd.grad(found.float().sum(), weight)
        assert found.shape == expected.shape
        torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(gradient, exact, rtol=2e-2, atol=5e-2)


def test_the_output_is_that_of_the_map_itself() -> None:
    weight = torch.randn(4, 4, 3, 3, dtype=torch.bfloat16)
    for size in ((1, 1), (1, 2), (1, 5), (2, 1), (7, 1), (2, 2)):
        x = torch.randn(1, 4, *size, dtype=torch.bfloat16)
        whole, padded = (F.conv2d(given, weight, stride=2, padding=1) for given in (x, no_single_cells(x)))
        torch.testing.assert_close(padded, whole, rtol=0, atol=0)
    assert no_single_cells(torch.randn(1, 4, 1, 1)).shape == (1, 4, 1, 1)  # float32 needs nothing
