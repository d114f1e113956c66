"""Several looks at a picture give one result."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focalnet.errors import ConfigError
from focalnet.inference.tiling import Looks, Window, merge, windows
from focalnet.results import Detections


def found(
    boxes: list[list[float]], scores: list[float], labels: list[int] | None = None, size=(100, 100)
) -> Detections:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return Detections(corners, torch.tensor(scores), torch.tensor(labels or [0] * len(boxes)), masks=masks, size=size)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(32, 400), st.floats(0, 0.9))
def test_tiles_cover_the_picture_and_overlap(height, width, tile, overlap):
    parts = list(windows(height, width, tile, overlap))
    assert all(part.left >= 0 and part.left + part.width <= width for part in parts)
    assert all(part.top >= 0 and part.top + part.height <= height for part in parts)
    assert len({(part.height, part.width) for part in parts}) == 1
    for starts, side in (({p.left for p in parts}, width), ({p.top for p in parts}, height)):
        ordered = sorted(starts)
        assert (ordered[0], ordered[-1]) == (0, max(side - tile, 0))
        assert all(b - a <= max(tile * (1 - overlap), 1) + 1 for a, b in pairwise(ordered))


def test_without_tiles_there_is_one_window():
    assert list(windows(30, 40, None, 0.2)) == [Window(0, 0, 40, 30)]


def test_what_was_found_twice_is_there_once_with_its_best_mask():
    looks = [
        (Window(0, 0, 100, 100), found([[60, 10, 90, 40]], [0.7])),
        (Window(50, 0, 100, 100), found([[10, 10, 40, 40], [70, 70, 90, 90]], [0.9, 0.5])),
    ]
    whole = merge(looks, (100, 150), limit=10)
    assert whole.boxes.tolist() == [[60, 10, 90, 40], [120, 70, 140, 90]]
    assert whole.scores.tolist() == pytest.approx([0.9, 0.5])
    assert whole.masks.shape == (2, 100, 150)
    assert whole.masks[0, 10:40, 60:90].all()
    assert whole.masks[0].sum() == 900
    assert whole.size == (100, 150)


def test_classes_do_not_suppress_each_other_and_the_limit_holds():
    look = (
        Window(0, 0, 100, 100),
        found([[0, 0, 50, 50], [0, 0, 50, 50], [60, 60, 90, 90]], [0.9, 0.8, 0.7], [0, 1, 0]),
    )
    assert merge([look], (100, 100), limit=10).labels.tolist() == [0, 1, 0]
    assert merge([look], (100, 100), limit=2).labels.tolist() == [0, 1]


def test_a_piece_at_a_tiles_edge_gives_way_to_the_whole_object():
    whole = (Window(50, 0, 100, 100), found([[10, 10, 90, 60]], [0.6]))  # 60 to 140 of the picture
    piece = (Window(0, 0, 100, 100), found([[60, 10, 100, 60]], [0.95]))  # cut at 100
    assert merge([piece, whole], (100, 150), limit=10).boxes.tolist() == [[60, 10, 140, 60]]
    inner = (Window(0, 0, 100, 100), found([[62, 12, 90, 50]], [0.95]))  # a smaller object, not cut
    assert len(merge([inner, whole], (100, 150), limit=10)) == 2


def test_a_mirrored_look_is_turned_back():
    straight = found([[10, 20, 30, 40]], [0.9])
    mirrored = found([[70, 20, 90, 40]], [0.8])
    whole = merge([(Window(0, 0, 100, 100, mirrored=True), mirrored)], (100, 100), limit=10)
    assert whole.boxes.tolist() == straight.boxes.tolist()
    assert torch.equal(whole.masks, straight.masks)


def test_nothing_found_anywhere():
    looks = [(Window(0, 0, 100, 100), found([], [])), (Window(50, 0, 100, 100), found([], []))]
    whole = merge(looks, (100, 150), limit=10)
    assert (len(whole), whole.masks.shape) == (0, (0, 100, 150))


@pytest.mark.parametrize("options", [{"tile": 8}, {"overlap": 1.0}, {"short_sides": (8,)}])
def test_impossible_looks_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Looks(**options)
