"""Where names of objects are written, and in which colors objects are drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from focalnet.visualize import draw_boxes, palettes
from focalnet.visualize.boxes import place_labels

LIMITS = (400, 300)
LABEL = (60, 16)


def overlap(one, other) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


corners = st.tuples(st.floats(0, 390), st.floats(0, 290), st.floats(0, 200), st.floats(0, 200))


@given(st.lists(corners.map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])), max_size=25))
def test_labels_never_overlap_and_stay_within_the_image(boxes):
    places = place_labels(boxes, [LABEL] * len(boxes), LIMITS)
    assert len(places) == len(boxes)
    shown = [place for place in places if place is not None]
    assert not boxes or shown  # the first has the choice
    for x1, y1, x2, y2 in shown:
        assert (x2 - x1, y2 - y1) == pytest.approx(LABEL)
        assert min(x1, y1) >= 0
        assert (x2, y2) <= LIMITS
    assert not any(overlap(one, other) for one, other in itertools.combinations(shown, 2))


def test_a_label_is_above_its_box_unless_it_would_hide_a_small_object():
    box, small = (100.0, 100.0, 200.0, 200.0), (110.0, 86.0, 120.0, 96.0)
    assert place_labels([box], [LABEL], LIMITS) == [(100, 84, 160, 100)]
    assert place_labels([box, small], [LABEL, None], LIMITS) == [(100, 200, 160, 216), None]
    large = (0.0, 0.0, 400.0, 300.0)  # of which a label hides little
    assert place_labels([box, large], [LABEL, None], LIMITS) == [(100, 84, 160, 100), None]


def test_a_label_larger_than_the_image_begins_in_its_corner():
    assert place_labels([(0, 0, 5, 5)], [(60, 16)], (20, 10)) == [(0, 0, 60, 16)]


def test_objects_of_one_class_are_told_apart():
    masks = torch.zeros(6, 400, 600, dtype=torch.bool)
    for number, mask in enumerate(masks):
        mask[100:300, 100 * number : 100 * number + 80] = True
    boxes = torch.tensor([[100.0 * n, 100, 100 * n + 80, 300] for n in range(6)])
    names, labels = ["ant"] * 6, torch.zeros(6, dtype=torch.int64)
    drawn = draw_boxes(Image.new("RGB", (600, 400)), boxes, labels, names, None, masks)
    middles = [drawn.getpixel((100 * n + 40, 200)) for n in range(6)]
    differences = [np.abs(np.subtract(one, other)).sum() for one, other in itertools.combinations(middles, 2)]
    assert min(differences) > 20


@pytest.mark.parametrize("alone", [True, False])
def test_shades_begin_with_the_color_itself(alone):
    color = palettes.rgb(palettes.of_class(0))
    shades = palettes.shades(color, 30, alone=alone)
    assert shades[0] == color
    assert len(set(shades[:11])) == 11
    assert all(0 <= value <= 255 for shade in shades for value in shade)


def test_well_known_classes_have_their_own_colors():
    camvid = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist".split()
    colors = palettes.of_names(camvid)
    assert colors is not None
    assert (colors[0], colors[3], colors[8]) == ((128, 128, 128), (128, 64, 128), (64, 0, 128))
    cityscapes = "road sidewalk building wall fence pole traffic_light Traffic-Sign vegetation".split()
    colors = palettes.of_names(cityscapes)
    assert colors is not None
    assert (colors[2], colors[6]) == ((70, 70, 70), (250, 170, 30))
    for names in (["road", "sky"], [*camvid, "dragon"], [], [*cityscapes, "tree"]):
        assert palettes.of_names(names) is None
