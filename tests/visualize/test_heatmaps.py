"""Heatmaps and sheets of them, as far as a test can see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focalnet.errors import ConfigError
from focalnet.visualize import (
    Scale,
    SheetRow,
    draw_grid,
    draw_heatmap,
    draw_kernels,
    draw_outline,
    draw_profiles,
    draw_sheet,
    save_animation,
    with_color_bar,
)
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


def test_zero_is_in_the_middle_of_signed_colors_and_the_sign_is_seen_in_them() -> None:
    scale = Scale.of(np.array([[-1.0, 3.0]], np.float32))
    assert (scale.low, scale.high) == (-3, 3)
    below, zero, above = scale.rgb(np.array([-3.0, 0.0, 3.0], np.float32))
    assert np.ptp(zero) < 10  # neither red nor blue
    assert below[2] > below[0] + 50
    assert above[0] > above[2] + 50
    positive = Scale.of(np.array([[1.0, 3.0]], np.float32))
    assert (positive.low, positive.high) == (1, 3)
    assert positive.colors != scale.colors


@pytest.mark.parametrize("values", [[[0.0, 1.0]], [[-1.0, 1.0]]])
def test_colors_differ_for_those_who_see_no_red_and_green_apart(values: list[list[float]]) -> None:
    from focalnet.visualize import palettes

    scale = Scale.of(np.array(values, np.float32))
    ramp = scale.rgb(np.linspace(scale.low, scale.high, 9, dtype=np.float32)).astype(np.float64)
    for matrix in (palettes._PROTAN, palettes._DEUTAN):
        seen = palettes._oklab((palettes._linear(ramp) @ matrix.T).clip(0, 1))
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(9)
        assert apart.min() > 0.05


def test_one_scale_for_several_maps_holds_all_of_their_values() -> None:
    scale = Scale.of(grid(), grid() - 2)
    assert (scale.low, scale.high) == (-11, 11)
    one, other = (draw_heatmap(Image.new("RGB", (400, 300)), values, scale=scale) for values in (grid(), grid() - 2))
    assert one.tobytes() != other.tobytes()


def test_an_overlay_has_the_resolution_of_its_image() -> None:
    assert draw_heatmap(Image.new("RGB", (2000, 1500)), grid()).size == (2000, 1500)
    clear = draw_heatmap(Image.new("RGB", (400, 300), "gray"), grid(), opacity=0)
    assert len(clear.getcolors() or []) == 1


@pytest.mark.parametrize("dark", [False, True])
def test_a_color_bar_is_below_the_image(dark: bool) -> None:
    image = Image.new("RGB", (400, 300), "gray")
    with_bar = with_color_bar(image, Scale.of(grid()), "a title", dark=dark)
    assert with_bar.width == 400
    assert 320 < with_bar.height < 420
    corner = with_bar.getpixel((0, with_bar.height - 1))
    assert isinstance(corner, tuple)
    assert (max(corner) < 60) == dark


def test_a_grid_has_a_panel_for_each_map() -> None:
    image = Image.new("RGB", (400, 300), "navy")
    few = draw_grid(image, {"a": grid()}, title="t")
    many = draw_grid(image, {str(i): grid() - i for i in range(7)}, (50, 0, 350, 300), title="t", columns=4, dark=True)
    assert many.width > 1.5 * few.width
    assert many.height > 1.4 * few.height


def test_profiles_are_drawn() -> None:
    shares = np.array([[0.2, 0.8, 0.0], [0.1, 0.3, 0.6]], np.float32)
    drawn = draw_profiles({"a": shares, "b": shares[:1]}, [4, 8], title="t")
    assert min(drawn.size) > 300
    assert min(draw_profiles({"a": shares[:0]}, [4], title="no levels", dark=True).size) > 300


def test_an_animation_has_all_frames(tmp_path: Path) -> None:
    frames = [draw_heatmap(Image.new("RGB", (330, 300)), grid() * sign) for sign in (1, -1, 0)]
    for name in ("a.gif", "b/c.webp"):
        with Image.open(save_animation(frames, tmp_path / name)) as written:
            assert written.n_frames == 3
            assert written.size == (330, 300)
    with pytest.raises(ConfigError, match=r"\.gif or \.webp"):
        save_animation(frames, tmp_path / "a.png")


def test_a_gif_keeps_smooth_colors(tmp_path: Path) -> None:
    """With 256 colors and no dithering, the bar below the heatmap shows steps."""
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    frame = with_color_bar(draw_heatmap(Image.new("RGB", (330, 300), "gray"), values), Scale.of(values), "t", dark=True)
    with Image.open(save_animation([frame, frame], tmp_path / "a.gif")) as written:
        kept = written.convert("RGB")
    bar = (10, 330, 320, 340)
    drawn, saved = (np.asarray(page.crop(bar).resize((31, 1), Image.Resampling.BOX), float) for page in (frame, kept))
    assert np.abs(drawn - saved).max() < 8  # of squares of ten pixels
    assert np.abs(np.asarray(kept, float)[-1, 0] - np.asarray(frame)[-1, 0]).max() < 4  # the dark page


def test_an_outline_surrounds_the_object() -> None:
    inside = np.zeros((10, 20), bool)
    inside[2:6, 4:10] = True
    image = Image.new("RGB", (400, 240), (120, 120, 120))
    drawn = np.asarray(draw_outline(image, inside, (0, 0, 400, 200)).convert("L"), int)
    row = drawn[80]  # the object has columns 80 to 199 there
    assert (row[80:200] == 120).all()
    assert row[79] > 240
    assert row[76] < 60
    assert (row[:70] == 120).all()
    assert row[200] > 240
    assert (drawn[200:] == 120).all()  # the outline belongs to what is covered
    assert np.asarray(image)[80, 79, 0] == 120


def test_a_long_title_stays_within_the_image() -> None:
    scale = Scale(0, 1, "viridis")
    image = Image.new("RGB", (330, 200))
    for title in ("heat", "a class with a rather long name, of forty-five", "many names, " * 20):
        page = np.asarray(with_color_bar(image, scale, title).convert("L"), np.int16)
        assert (page[200:220, :4] == page[-1, 0]).all(), title  # nothing is written at the edges
        assert (page[200:220, -4:] == page[-1, 0]).all(), title
        assert (page[200:222] < 128).any(), title


def test_a_note_has_its_own_line_below_the_title() -> None:
    image, scale = Image.new("RGB", (330, 200)), Scale(0, 1, "viridis")
    plain, noted = (
        np.asarray(with_color_bar(image, scale, "heat", note)) for note in ("", "mean inside 1, outside 0.1")
    )
    line = len(noted) - len(plain)
    assert line > 14
    bar = 200 + int(np.argmax((plain[200:, 10] != 255).any(1)))  # the first row that is colored near the edge
    assert np.array_equal(noted[200:bar], plain[200:bar])  # the title
    assert np.array_equal(noted[bar + line :], plain[bar:])  # the bar and its values
    assert (noted[bar : bar + line] < 200).any()  # the note
