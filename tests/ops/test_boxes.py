"""Properties of the detectors' building blocks that no reference file holds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.ops import anchors, assign, boxes, rois

SEEDS = st.integers(0, 2**16)
STDS = (0.1, 0.1, 0.2, 0.2)
NOTHING = torch.zeros(0, 4)


def random_boxes(count: int, side: float = 100.0) -> torch.Tensor:
    low = torch.rand(count, 2) * side
    return torch.cat([low, low + 1 + torch.rand(count, 2) * side / 2], 1)


@settings(max_examples=30)
@given(seed=SEEDS, count=st.integers(0, 20))
def test_decoding_is_the_inverse_of_encoding(seed: int, count: int) -> None:
    torch.manual_seed(seed)
    priors, objects = random_boxes(count), random_boxes(count)
    torch.testing.assert_close(
        boxes.decode(priors, boxes.encode(priors, objects, STDS), STDS), objects, rtol=1e-4, atol=1e-3
    )


@settings(max_examples=30)
@given(seed=SEEDS)
def test_clipped_boxes_are_inside(seed: int) -> None:
    torch.manual_seed(seed)
    cut = boxes.clip(torch.randn(50, 4) * 100, (40, 60))
    assert (cut >= 0).all()
    assert (cut <= torch.tensor([60.0, 40.0, 60.0, 40.0])).all()
    each = torch.tensor([[40, 60]] * 25 + [[10, 20]] * 25)
    assert (boxes.clip(torch.randn(50, 4) * 100, each)[25:] <= torch.tensor([20.0, 10.0, 20.0, 10.0])).all()


@settings(max_examples=30)
@given(seed=SEEDS, objects=st.integers(0, 6), crowds=st.integers(0, 3))
def test_every_assignment_names_an_object_background_or_neither(seed: int, objects: int, crowds: int) -> None:
    torch.manual_seed(seed)
    found, ignored = random_boxes(objects), random_boxes(crowds)
    levels = [
        anchors.grid_anchors(anchors.base_anchors(stride, 4, (1.0,)), stride, (100 // stride, 120 // stride))
        for stride in (8, 16, 32)
    ]
    flat = torch.cat(levels)
    max_iou_assign = assign.max_iou_assign(
        flat, found, ignored, positive=0.5, negative=0.3, low_quality=0.2, ignore=0.5
    )
    atss_assign = assign.atss_assign(levels, found, ignored, candidates=9, ignore=0.5)
    hidden = boxes.cover(flat, ignored).amax(1) > 0.5 if crowds else torch.zeros(len(flat), dtype=torch.bool)
    for assigned in (max_iou_assign, atss_assign):
        assert assigned.shape == (len(flat),)
        assert int(assigned.min()) >= -1
        assert int(assigned.max()) <= objects
        assert (assigned[hidden] == -1).all()
    if not crowds:
        assert (atss_assign >= 0).all()


@settings(max_examples=20)
@given(seed=SEEDS, predictions=st.integers(1, 12), objects=st.integers(0, 12))
def test_one_to_one_gives_each_object_one_prediction(seed: int, predictions: int, objects: int) -> None:
    torch.manual_seed(seed)
    assigned = assign.hungarian_match(torch.randn(predictions, objects))
    taken = assigned[assigned > 0].tolist()
    assert len(taken) == len(set(taken)) == min(predictions, objects)


@settings(max_examples=30)
@given(seed=SEEDS, positives=st.integers(0, 30), negatives=st.integers(0, 30), count=st.integers(1, 40))
def test_samples_keep_to_their_shares(seed: int, positives: int, negatives: int, count: int) -> None:
    torch.manual_seed(seed)
    assigned = torch.tensor([1] * positives + [0] * negatives + [-1] * 5)[torch.randperm(positives + negatives + 5)]
    positive, negative = assign.sample(assigned, count, 0.25)
    assert (assigned[positive] == 1).all()
    assert (assigned[negative] == 0).all()
    assert len(positive) == min(positives, int(count * 0.25))
    assert len(negative) == min(negatives, count - len(positive))
    assert len(set(positive.tolist())) == len(positive)
    torch.manual_seed(seed)
    torch.randperm(positives + negatives + 5)
    assert torch.equal(assign.sample(assigned, count, 0.25)[0], positive)


@settings(max_examples=15)
@given(seed=SEEDS, height=st.integers(1, 40), width=st.integers(1, 40))
def test_pasting_is_bilinear_sampling(seed: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    masks, found = torch.rand(3, 28, 28), random_boxes(3, side=30)
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    low, extent = found[:, None, :2], found[:, None, 2:] - found[:, None, :2]
    column = (x[None] - low[..., 0]) / extent[..., 0] * 2 - 1
    row = (y[None] - low[..., 1]) / extent[..., 1] * 2 - 1
    grid = torch.stack([column[:, None].expand(-1, height, -1), row[:, :, None].expand(-1, -1, width)], -1)
    expected = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    torch.testing.assert_close(rois.paste_masks_soft(masks, found, (height, width)), expected, rtol=1e-4, atol=1e-4)


def test_a_box_without_a_size_has_no_mask() -> None:
    flat = torch.tensor([[5.0, 5.0, 5.0, 9.0], [3.0, 4.0, 8.0, 4.0], [2.5, 2.5, 2.5, 2.5]])
    assert not rois.paste_masks(torch.ones(3, 28, 28), flat, (12, 12)).any()


def test_masks_are_pasted_in_chunks_alike(monkeypatch: object) -> None:
    torch.manual_seed(0)
    masks, found = torch.rand(7, 28, 28), random_boxes(7, side=30)
    whole = rois.paste_masks(masks, found, (40, 50))
    monkeypatch.setattr(rois, "_CHUNK", 2 * 40 * 50)  # type: ignore[attr-defined]
    assert torch.equal(rois.paste_masks(masks, found, (40, 50)), whole)


def test_crowds_alone_leave_no_background_there() -> None:
    flat = random_boxes(5)
    assert (assign.max_iou_assign(flat, NOTHING, flat, positive=0.5, negative=0.5, ignore=0.5) == -1).all()
    assert (assign.max_iou_assign(flat, NOTHING, flat, positive=0.5, negative=0.5) == 0).all()
