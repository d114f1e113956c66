"""RoIAlign on a CPU against torchvision's, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from focalnet.ops.roi_align import roi_align

Box = tuple[float, float, float, float]
edge = st.floats(-40, 120, width=32)


def agrees(boxes: list[Box], size: int, scale: float, samples: int, shape: tuple[int, int] = (11, 13)) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)
    rois = torch.tensor([[i % 2, *box] for i, box in enumerate(boxes)], dtype=torch.float64).view(-1, 5)
    towards = torch.randn(len(rois), 3, size, size, generator=generator, dtype=torch.float64)

    def both(ours: bool) -> tuple[Tensor, Tensor]:
        leaf = features.clone().requires_grad_()
        pooled = (
            roi_align(leaf, rois, size, scale, samples)
            if ours
            else torchvision.ops.roi_align(leaf, rois, size, scale, samples, aligned=True)
        )
        (gradient,) = torch.autograd.grad(pooled, leaf, towards)
        return pooled.detach(), gradient

    for mine, theirs in zip(both(True), both(False), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@given(
    st.lists(st.tuples(edge, edge, edge, edge), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([0.25, 1.0]),
    st.integers(0, 3),
)
def test_equals_torchvision(boxes: list[Box], size: int, scale: float, samples: int) -> None:
    agrees([(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes], size, scale, samples)


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [(5.0, 5.0, 5.0, 5.0)],  # without size
        [(9.0, 9.0, 2.0, 2.0)],  # turned inside out
        [(-500.0, -500.0, -400.0, -400.0)],  # outside the map
        [(0.0, 0.0, 0.5, 3000.0), (0.0, 0.0, 3000.0, 0.5), (1.0, 1.0, 2.0, 2.0)],  # very long ones beside a small one
    ],
)
def test_odd_regions(boxes: list[Box]) -> None:
    agrees(boxes, 7, 0.5, 0)


def test_a_map_of_one_cell() -> None:
    agrees([(-1.0, -1.0, 2.0, 2.0), (0.0, 0.0, 1.0, 1.0)], 2, 1.0, 0, shape=(1, 1))


def test_channels_last_and_autocast() -> None:
    features = torch.randn(1, 4, 8, 8)
    rois = torch.tensor([[0.0, 1.0, 2.0, 30.0, 25.0]])
    pooled = roi_align(features, rois, 3, 0.25)
    torch.testing.assert_close(roi_align(features.to(memory_format=torch.channels_last), rois, 3, 0.25), pooled)
    assert pooled.dtype == torch.float32
    assert pooled.shape == (1, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(roi_align(features, rois, 3, 0.25), pooled)
