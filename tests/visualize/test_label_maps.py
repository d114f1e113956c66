"""Colors and places of the areas of label maps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from focalnet.visualize import palettes
from focalnet.visualize.label_maps import deepest, sampled


def test_256_colors_differ_and_stay_what_they_are():
    chosen = palettes.regions().astype(int)
    assert len({tuple(color) for color in chosen.tolist()}) == 256
    assert palettes.of_region(0) == tuple(chosen[0])
    assert palettes.of_region(256) == palettes.of_region(0)
    first = chosen[:20]  # enough for a street scene: far apart
    assert min(np.abs(a - b).sum() for a, b in itertools.combinations(first, 2)) > 60


def test_objects_of_a_class_have_neighboring_shades_that_differ():
    color = palettes.of_region(3)
    chosen = palettes.shades(color, 4)
    assert chosen[0] == color
    assert len(set(chosen)) == 4
    assert len(palettes.shades(color, 40)) == 40


@pytest.mark.parametrize(("color", "ink"), [((255, 240, 90), palettes.INK), ((20, 20, 90), palettes.PAPER)])
def test_text_can_be_read_on_its_color(color, ink):
    assert palettes.ink_on(color) == ink


def test_the_deepest_pixel_is_where_an_area_is_widest():
    mask = np.zeros((60, 100), dtype=bool)
    mask[20:41, 10:91] = True
    assert deepest(mask) == pytest.approx((50, 30), abs=20)
    ring = np.zeros((61, 61), dtype=bool)
    ring[:] = True
    ring[10:51, 10:51] = False  # its middle is not of it
    column, row = deepest(ring)
    assert ring[row, column]
    assert deepest(np.ones((1, 1), dtype=bool)) == (0, 0)


def test_sampling_takes_the_nearest_pixel():
    numbers = torch.arange(12).view(3, 4)
    assert np.array_equal(sampled(numbers, (4, 3)), numbers.numpy())
    assert np.array_equal(sampled(numbers, (2, 1)), [[5, 7]])
