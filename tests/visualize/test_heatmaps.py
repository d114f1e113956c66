"""Heatmaps and sheets of them, as far as a test can see them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from focalnet.visualize import SheetRow, draw_heatmap, draw_kernels, draw_sheet
from focalnet.visualize.heatmaps import upsample


def grid(height: int = 3, width: int = 4) -> np.ndarray:
    return np.arange(height * width, dtype=np.float32).reshape(height, width)


def test_upsampling_is_smooth_and_keeps_values() -> None:
    fine = upsample(grid(), (80, 60), (0, 0, 80, 60))
    assert fine.shape == (60, 80)
    assert np.abs(np.diff(fine, axis=1)).max() < 0.2  # one step of the map is 1 over 20 pixels
    np.testing.assert_allclose(fine[10::20, 10::20].mean(), grid().mean(), atol=0.2)
    np.testing.assert_allclose(fine[30, 30], grid()[1, 1], atol=0.4)


def test_a_map_covers_its_region_and_nothing_else() -> None:
    fine = upsample(grid(), (80, 60), (20, 10, 60, 70))  # reaches beyond the bottom
    assert np.isnan(fine[:10]).all()
    assert np.isnan(fine[:, :20]).all()
    assert np.isnan(fine[:, 60:]).all()
    assert not np.isnan(fine[10:, 20:60]).any()


def test_the_highest_value_is_red_and_the_lowest_blue() -> None:
    values = np.zeros((2, 2), np.float32)
    values[0, 0], values[1, 1] = -7, 3
    drawn = np.asarray(draw_heatmap(Image.new("RGB", (400, 400), "grey"), values)).astype(int)
    low, high = drawn[50, 50], drawn[350, 350]
    assert low[2] > low[0] + 30
    assert high[0] > high[2] + 30


def test_outside_of_the_region_is_gray_and_the_region_moves_with_the_size() -> None:
    image = Image.new("RGB", (40, 20), "green")
    drawn = np.asarray(draw_heatmap(image, grid(), (20, 0, 40, 20))).astype(int)
    assert drawn.shape == (160, 320, 3)  # small images are enlarged
    assert np.ptp(drawn[:, :159], axis=-1).max() == 0
    assert np.ptp(drawn[:, 161:], axis=-1).max() > 30


@pytest.mark.parametrize("values", [np.zeros((3, 3)), np.full((1, 1), 5.0), np.zeros((7, 1))])
def test_a_flat_map_is_drawn(values: np.ndarray) -> None:
    drawn = draw_heatmap(Image.new("RGB", (400, 300)), values.astype(np.float32))
    assert len(drawn.getcolors()) == 1


def test_a_sheet_has_a_row_for_each_block_and_a_column_for_each_map() -> None:
    image = Image.new("RGB", (400, 300), "navy")
    levels = {"level 1": grid(), "level 2": grid(), "global": grid()}
    one = draw_sheet(image, [SheetRow("a", levels)], title="t")
    two = draw_sheet(image, [SheetRow("a", levels), SheetRow("b", {"global": grid()})], title="t")
    wider = draw_sheet(image, [SheetRow("a", {**levels, "modulator": grid()}, (50, 0, 350, 300))], title="t")
    assert two.width == one.width
    assert two.height > one.height + 150
    assert wider.width > one.width + 200


@pytest.mark.parametrize("size", [(8, 8), (1000, 10), (10, 1000)])
def test_a_sheet_of_any_image_is_drawn(size: tuple[int, int]) -> None:
    assert min(draw_sheet(Image.new("RGB", size), [SheetRow("a", {"global": grid()})], title="t").size) > 100


@pytest.mark.parametrize("title", ["$\\oops$", "a\nb\x1e.jpg", "猫.jpg", ""])
def test_any_title_is_drawn(title: str) -> None:
    draw_sheet(Image.new("RGB", (400, 300)), [SheetRow(title, {"global": grid()})], title=title, subtitle=title)


def test_kernels_of_different_levels_are_drawn() -> None:
    drawn = draw_kernels({"a": [grid(3, 3), grid(5, 5)], "b": [grid(3, 3)]}, title="t")
    assert min(drawn.size) > 300
