"""What dense heads are made of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from focalnet.layers.conv import Doubling
from focalnet.ops import backend


@pytest.mark.parametrize("name", ["eager", "native"])
def test_doubling_is_the_transposed_convolution(name: backend.Backend) -> None:
    layer = Doubling(5, 3).double()
    x = torch.randn(2, 5, 4, 7, dtype=torch.float64, requires_grad=True)
    leaves = [x, layer.weight, layer.bias]
    expected = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
    with backend.use(name):
        out = layer(x)
    torch.testing.assert_close(out, expected)
    towards = torch.randn_like(out)
    for mine, its in zip(
        torch.autograd.grad(out, leaves, towards), torch.autograd.grad(expected, leaves, towards), strict=True
    ):
        torch.testing.assert_close(mine, its)


def test_doubling_nothing_gives_nothing() -> None:
    assert Doubling(5, 3)(torch.zeros(0, 5, 14, 14)).shape == (0, 3, 28, 28)
