"""Pictures of maps: colours, names, legends, and files that other programs read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet.errors import ConfigError
from focalnet.inference.map_files import panoptic_entry, save_labels, save_segments
from focalnet.results import PanopticMap, Segment, SemanticMap
from focalnet.samples import IGNORED
from focalnet.visualize import draw_panoptic, draw_semantic, palettes
from focalnet.visualize.areas import deepest, sampled

GREY = (128, 128, 128)


def semantic(height: int = 600, width: int = 800, **options) -> SemanticMap:
    """Class 0 on the left, 1 on the right, nothing in a strip at the bottom."""
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[:, width // 2 :] = 1
    labels[height * 9 // 10 :] = IGNORED
    return SemanticMap(
        labels, **{"names": ("road", "sky"), "image": Image.new("RGB", (width, height), GREY), **options}
    )


def panoptic(height: int = 600, width: int = 800, **options) -> PanopticMap:
    """Two cars side by side above a road, nothing at the bottom."""
    ids = torch.zeros(height, width, dtype=torch.int32)
    ids[: height // 2, : width // 2], ids[: height // 2, width // 2 :] = 1, 2
    ids[height // 2 : height * 9 // 10] = 300
    areas = [int((ids == i).sum()) for i in (1, 2, 300)]
    segments = (
        Segment(1, 0, True, 0.9, areas[0]), Segment(2, 0, True, 0.8, areas[1]), Segment(300, 1, False, 0.7, areas[2]),
    )  # fmt: skip
    image = Image.new("RGB", (width, height), GREY)
    return PanopticMap(ids, segments, **{"names": ("car", "road"), "image": image, **options})


def colours(picture: Image.Image) -> set[tuple[int, int, int]]:
    return set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


def mixed(colour: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(int(0.45 * 128 + 0.55 * value) for value in colour)


def near(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1


# --- colours


def test_256_colours_differ_and_stay_what_they_are():
    found = palettes.regions().astype(int)
    assert len({tuple(colour) for colour in found.tolist()}) == 256
    assert palettes.of_region(0) == tuple(found[0])
    assert palettes.of_region(256) == palettes.of_region(0)
    first = found[:20]  # enough for a street scene: far apart
    assert min(np.abs(a - b).sum() for a, b in itertools.combinations(first, 2)) > 60


def test_objects_of_a_class_have_neighbouring_shades_that_differ():
    colour = palettes.of_region(3)
    found = palettes.shades(colour, 4)
    assert found[0] == colour
    assert len(set(found)) == 4
    assert len(palettes.shades(colour, 40)) == 40


@pytest.mark.parametrize(("colour", "ink"), [((255, 240, 90), palettes.INK), ((20, 20, 90), palettes.PAPER)])
def test_text_can_be_read_on_its_colour(colour, ink):
    assert palettes.ink_on(colour) == ink


# --- pictures


def test_each_class_takes_its_colour_and_what_has_none_is_dark():
    drawn = draw_semantic(semantic())
    assert drawn.width == 800
    assert drawn.height > 600  # the legend
    assert near(drawn.getpixel((30, 30)), mixed(palettes.of_region(0)))
    assert near(drawn.getpixel((770, 30)), mixed(palettes.of_region(1)))
    assert near(drawn.getpixel((200, 590)), mixed((0, 0, 0)))
    legend = colours(drawn.crop((0, 600, 800, drawn.height)))
    assert {palettes.of_region(0), palettes.of_region(1)} <= legend
    assert palettes.of_region(0) in colours(drawn.crop((0, 0, 400, 600)))  # the name's ground


def test_segments_of_a_class_have_shades_and_one_entry_in_the_legend():
    drawn = draw_panoptic(panoptic())
    first, second = palettes.shades(palettes.of_region(0), 2)
    assert near(drawn.getpixel((20, 20)), mixed(first))
    assert near(drawn.getpixel((780, 20)), mixed(second))
    assert near(drawn.getpixel((20, 400)), mixed(palettes.of_region(1)))
    legend = colours(drawn.crop((0, 600, 800, drawn.height)))
    assert palettes.of_region(0) in legend
    assert second not in legend


@pytest.mark.parametrize("draw", [lambda **o: draw_semantic(semantic(**o), legend=False),
                                  lambda **o: draw_panoptic(panoptic(**o), legend=False)])  # fmt: skip
def test_without_a_legend_pictures_keep_their_size(draw):
    assert draw(height=480, width=640).size == (640, 480)
    assert draw(height=3000, width=6400).size == (1600, 750)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 900), (900, 1), (20, 17), (1200, 1600)])
def test_any_size_can_be_drawn(size):
    height, width = size
    labels = torch.randint(0, 200, size)
    image = Image.new("RGB", (width, height), GREY)
    assert max(draw_semantic(SemanticMap(labels, image=image)).size) >= 640
    numbers = labels.unique().tolist()
    segments = tuple(Segment(i, i, i % 2 == 0, 0.5, int((labels == i).sum())) for i in numbers if i)
    assert max(draw_panoptic(PanopticMap(labels.int(), segments, image=image)).size) >= 640


def test_strange_names_and_empty_maps_can_be_drawn():
    named = semantic(names=("<$x_\n", "名" * 300))
    assert draw_semantic(named).width == 800
    nothing = torch.full((60, 80), IGNORED)
    assert draw_semantic(SemanticMap(nothing, image=Image.new("RGB", (80, 60)))).size == (640, 480)
    empty = PanopticMap(torch.zeros(60, 80, dtype=torch.int32), (), image=Image.new("RGB", (80, 60)))
    assert draw_panoptic(empty).size == (640, 480)


@pytest.mark.parametrize("found", [semantic(image=None, path="street.jpg"), panoptic(image=None, path="street.jpg")])
def test_without_a_picture_there_is_nothing_to_draw_on(found, tmp_path):
    with pytest.raises(ConfigError, match=r"street\.jpg"):
        found.save(tmp_path / "a.png")


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


def test_names_do_not_cover_each_other():
    drawn = draw_panoptic(panoptic(), legend=False)
    pixels = np.asarray(drawn)
    grounds = [palettes.shades(palettes.of_region(0), 2)[0], palettes.shades(palettes.of_region(0), 2)[1]]
    for ground in grounds:  # each whole: a filled box with text in it
        rows, columns = np.nonzero((pixels == ground).all(-1))
        assert len(rows) > 0.4 * (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_sampling_takes_the_nearest_pixel():
    numbers = torch.arange(12).view(3, 4)
    assert np.array_equal(sampled(numbers, (4, 3)), numbers.numpy())
    assert np.array_equal(sampled(numbers, (2, 1)), [[5, 7]])


# --- what a map says, and its files


def test_shares_are_of_all_pixels_the_largest_class_first():
    found = semantic()
    assert found.shares() == pytest.approx({0: 0.45, 1: 0.45})
    assert [entry["name"] for entry in found.to_dict()["classes"]] == ["road", "sky"]
    many = SemanticMap(torch.tensor([[IGNORED, 300, 300]]), names=tuple(map(str, range(301))))
    assert many.shares() == pytest.approx({300: 2 / 3, 255: 1 / 3})  # there, 255 is a class like others
    assert panoptic().to_dict()["segments"][2] == {
        "id": 300, "label": 1, "is_thing": False, "score": 0.7, "area": 192000, "name": "road",
    }  # fmt: skip


def test_label_maps_hold_classes_and_their_colours(tmp_path):
    with Image.open(save_labels(semantic(), tmp_path / "a.png")) as png:
        assert png.mode == "P"
        assert np.array_equal(np.asarray(png), semantic().labels.numpy())
        assert png.convert("RGB").getpixel((700, 0)) == palettes.of_region(1)
        assert png.convert("RGB").getpixel((0, 599)) == (0, 0, 0)


def test_label_maps_of_many_classes_have_16_bits(tmp_path):
    labels = torch.tensor([[0, 255, 299]])
    many = SemanticMap(labels, names=tuple(map(str, range(300))))
    with Image.open(save_labels(many, tmp_path / "a.png")) as png:
        assert png.mode == "I;16"
        assert np.asarray(png).tolist() == labels.tolist()


def test_segments_are_written_as_coco_has_them(tmp_path):
    found = panoptic()
    with Image.open(save_segments(found, tmp_path / "a.png")) as png:
        channels = np.asarray(png).astype(int)
    assert np.array_equal(channels @ (1, 256, 65536), found.ids.numpy())
    entry = panoptic_entry(found, 7, "a.png", (10, 20))
    assert (entry["image_id"], entry["file_name"]) == (7, "a.png")
    assert entry["segments_info"][2] == {
        "id": 300, "category_id": 20, "area": 192000, "bbox": [0, 300, 800, 240], "iscrowd": 0,
    }  # fmt: skip
