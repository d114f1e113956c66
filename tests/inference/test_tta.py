"""Tiles cover an image, and the predictions of several views become one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from focalnet.errors import ConfigError
from focalnet.inference.tta import Views, Window, merge, slide, tiles
from focalnet.ops import label_maps
from focalnet.results import Detections
from tests.inference.segmenters import colours


def detections(
    boxes: list[list[float]], scores: list[float], labels: list[int] | None = None, size=(100, 100)
) -> Detections:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return Detections(corners, torch.tensor(scores), torch.tensor(labels or [0] * len(boxes)), masks=masks, size=size)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(32, 400), st.floats(0, 0.9))
def test_tiles_cover_the_image_and_overlap(height, width, tile, overlap):
    parts = [part for part, _ in tiles(height, width, tile, overlap)]
    assert all(part.left >= 0 and part.left + part.width <= width for part in parts)
    assert all(part.top >= 0 and part.top + part.height <= height for part in parts)
    assert len({(part.height, part.width) for part in parts}) == 1
    for starts, side in (({p.left for p in parts}, width), ({p.top for p in parts}, height)):
        ordered = sorted(starts)
        assert (ordered[0], ordered[-1]) == (0, max(side - tile, 0))
        assert all(b - a <= max(tile * (1 - overlap), 1) + 1 for a, b in pairwise(ordered))


def test_without_a_tile_size_there_is_one_tile():
    assert list(tiles(30, 40, None, 0.2)) == [(Window(0, 0, 40, 30), Window(0, 0, 40, 30))]


def test_an_object_in_two_views_is_kept_once_with_its_best_mask():
    predictions = [
        (Window(0, 0, 100, 100), detections([[60, 10, 90, 40]], [0.7])),
        (Window(50, 0, 100, 100), detections([[10, 10, 40, 40], [70, 70, 90, 90]], [0.9, 0.5])),
    ]
    whole = merge(predictions, (100, 150), limit=10)
    assert whole.boxes.tolist() == [[60, 10, 90, 40], [120, 70, 140, 90]]
    assert whole.scores.tolist() == pytest.approx([0.9, 0.5])
    assert whole.masks.shape == (2, 100, 150)
    assert whole.masks[0, 10:40, 60:90].all()
    assert whole.masks[0].sum() == 900
    assert whole.size == (100, 150)


def test_classes_do_not_suppress_each_other_and_the_limit_holds():
    prediction = (
        Window(0, 0, 100, 100),
        detections([[0, 0, 50, 50], [0, 0, 50, 50], [60, 60, 90, 90]], [0.9, 0.8, 0.7], [0, 1, 0]),
    )
    assert merge([prediction], (100, 100), limit=10).labels.tolist() == [0, 1, 0]
    assert merge([prediction], (100, 100), limit=2).labels.tolist() == [0, 1]


def test_a_piece_at_a_tiles_edge_gives_way_to_the_whole_object():
    whole = (Window(50, 0, 100, 100), detections([[10, 10, 90, 60]], [0.6]))  # 60 to 140 of the image
    piece = (Window(0, 0, 100, 100), detections([[60, 10, 100, 60]], [0.95]))  # cut at 100
    assert merge([piece, whole], (100, 150), limit=10).boxes.tolist() == [[60, 10, 140, 60]]
    inner = (Window(0, 0, 100, 100), detections([[62, 12, 90, 50]], [0.95]))  # a smaller object, not cut
    assert len(merge([inner, whole], (100, 150), limit=10)) == 2


def test_a_mirrored_view_is_flipped_back():
    straight = detections([[10, 20, 30, 40]], [0.9])
    mirrored = detections([[70, 20, 90, 40]], [0.8])
    whole = merge([(Window(0, 0, 100, 100, mirrored=True), mirrored)], (100, 100), limit=10)
    assert whole.boxes.tolist() == straight.boxes.tolist()
    assert torch.equal(whole.masks, straight.masks)


def test_views_without_objects():
    predictions = [(Window(0, 0, 100, 100), detections([], [])), (Window(50, 0, 100, 100), detections([], []))]
    whole = merge(predictions, (100, 150), limit=10)
    assert (len(whole), whole.masks.shape) == (0, (0, 100, 150))


@pytest.mark.parametrize("options", [{"tile": 8}, {"overlap": 1.0}, {"short_sides": (8,)}])
def test_impossible_views_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Views(**options)


# --- the cores of tiles, and labels from scores


@given(st.integers(1, 300), st.integers(1, 300), st.integers(32, 200), st.floats(0, 0.9))
def test_cores_cover_every_pixel_once_and_lie_within_their_tiles(height, width, tile, overlap):
    covered = torch.zeros(height, width)
    for window, core in tiles(height, width, tile, overlap):
        core.of(covered).add_(1)
        assert window.left <= core.left
        assert core.left + core.width <= window.left + window.width
        assert window.top <= core.top
        assert core.top + core.height <= window.top + window.height
    assert (covered == 1).all()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 60), st.integers(1, 60))
def test_labels_are_those_of_resized_scores_whatever_the_band(h, w, height, width):
    torch.manual_seed(h * 100 + w)
    scores = torch.randn(4, h, w)
    resized = F.interpolate(scores[None], (height, width), mode="bilinear")[0]
    before, label_maps.BAND = label_maps.BAND, 4 * width * 3  # three rows at a time
    try:
        labels = label_maps.label_map(scores, (height, width))
    finally:
        label_maps.BAND = before
    best = resized.max(0).values
    torch.testing.assert_close(resized.gather(0, labels[None])[0], best, rtol=1e-5, atol=1e-5)


# --- the sliding window


def test_slide_is_the_mean_of_its_windows():
    network = colours()
    images = torch.randn(2, 3, 50, 70)
    torch.testing.assert_close(slide(network, images, (32, 32), (20, 24)), 9 * images)
    assert [shape[2:] for shape in network.seen] == [(32, 32)] * 6  # rows 0, 18; columns 0, 24, 38
    network.class_scores = lambda part: part.mean((2, 3), keepdim=True).expand_as(part)
    slid = slide(network, images, (50, 40), (50, 30))
    left, right = images[..., :40].mean((2, 3)), images[..., 30:].mean((2, 3))
    torch.testing.assert_close(slid[..., 0, 0], left)
    torch.testing.assert_close(slid[..., 0, 35], (left + right) / 2)
    torch.testing.assert_close(slid[..., 0, 69], right)


def test_slide_sees_a_small_image_whole():
    network = colours()
    slide(network, torch.randn(1, 3, 20, 30), (64, 64), (40, 40))
    assert network.seen == [(1, 3, 20, 30)]


@pytest.mark.parametrize(("crop", "stride"), [((32, 32), (0, 8)), ((32, 0), (8, 8)), ((32, 32), (40, 8))])
def test_slide_refuses_what_leaves_gaps(crop, stride):
    with pytest.raises(ConfigError, match=r"crop|stride"):
        slide(colours(), torch.randn(1, 3, 64, 64), crop, stride)
