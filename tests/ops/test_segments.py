"""Segments from label maps, their boxes, and masks read at points."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import masks_to_boxes

from focalnet.ops.segments import boxes_around, sample_logits, sample_masks
from focalnet.samples import LabelMapTarget


def test_segments_of_a_label_map() -> None:
    labels = torch.tensor([[7, 7, 255], [0, 255, 7]])
    found = LabelMapTarget(labels).segments()
    assert found.labels.tolist() == [0, 7]
    assert found.masks.tolist() == [
        [[False, False, False], [True, False, False]],
        [[True, True, False], [False, False, True]],
    ]


def test_segments_of_nothing() -> None:
    found = LabelMapTarget(torch.full((4, 5), 255, dtype=torch.uint8)).segments()
    assert found.labels.shape == (0,)
    assert found.labels.dtype == torch.int64
    assert found.masks.shape == (0, 4, 5)


def test_boxes_hold_their_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 9, 13, generator=generator) > 0.96
    masks[3] = False
    some = masks.flatten(1).any(1)
    boxes = boxes_around(masks)
    assert (boxes[~some] == 0).all()
    torch.testing.assert_close(boxes[some], masks_to_boxes(masks[some]) + torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert boxes_around(masks[:0]).shape == (0, 4)


@settings(max_examples=30)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_bool_masks_are_read_like_logits(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, height, width, generator=generator) > 0.5
    points = torch.rand(4, 20, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    index = torch.tensor([2, 0, 0, 1])
    expected = sample_logits(masks[index][:, None].double(), points)[:, 0]
    torch.testing.assert_close(sample_masks(masks, points, index), expected)
