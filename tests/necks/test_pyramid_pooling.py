"""Pyramid pooling: the averages are those of the parts of the map."""

from __future__ import annotations

import torch

from focalnet.nn.pyramid_pooling import PyramidPooling


@torch.no_grad()
def test_averages_of_the_whole_and_of_quarters() -> None:
    pooling = PyramidPooling(4, 4, (1, 2)).eval()
    for branch in pooling:
        branch[1].conv.weight.copy_(torch.eye(4)[:, :, None, None])
    x = torch.rand(2, 4, 6, 8).contiguous(memory_format=torch.channels_last)
    whole, quarters = pooling(x)
    scale = (1 + pooling[0][1].bn.eps) ** 0.5  # a batch norm that has seen nothing
    torch.testing.assert_close(whole * scale, x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(quarters[:, :, 1, 0] * scale, x[:, :, 3:, :4].mean((2, 3)))


def test_a_grid_finer_than_the_map() -> None:
    (fine,) = PyramidPooling(2, 3, (6,)).eval()(torch.rand(1, 2, 2, 3))
    assert fine.shape == (1, 3, 6, 6)


def test_names_are_openmmlab_s() -> None:
    keys = PyramidPooling(2, 3, (1, 2)).state_dict()
    assert {key.rpartition(".")[0] for key in keys} == {f"{i}.1.{part}" for i in range(2) for part in ("conv", "bn")}
