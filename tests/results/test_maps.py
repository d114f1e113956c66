"""Semantic and panoptic maps: how they are drawn, and files that other programs read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet.errors import ConfigError
from focalnet.results import PanopticMap, Segment, SemanticMap
from focalnet.samples import IGNORED
from focalnet.visualize import palettes

GRAY = (128, 128, 128)


def semantic(height: int = 600, width: int = 800, **options) -> SemanticMap:
    """Class 0 on the left, 1 on the right, nothing in a strip at the bottom."""
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[:, width // 2 :] = 1
    labels[height * 9 // 10 :] = IGNORED
    return SemanticMap(
        labels, **{"names": ("road", "sky"), "image": Image.new("RGB", (width, height), GRAY), **options}
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
    image = Image.new("RGB", (width, height), GRAY)
    return PanopticMap(ids, segments, **{"names": ("car", "road"), "image": image, **options})


def colors(image: Image.Image) -> set[tuple[int, int, int]]:
    return set(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))


def mixed(color: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(int(0.45 * 128 + 0.55 * value) for value in color)


def near(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1


# --- drawings


def test_each_class_takes_its_color_and_pixels_of_none_are_dark():
    drawn = semantic().draw()
    assert drawn.width == 800
    assert drawn.height > 600  # the legend
    assert near(drawn.getpixel((30, 30)), mixed(palettes.of_region(0)))
    assert near(drawn.getpixel((770, 30)), mixed(palettes.of_region(1)))
    assert near(drawn.getpixel((200, 590)), mixed((0, 0, 0)))
    legend = colors(drawn.crop((0, 600, 800, drawn.height)))
    assert {palettes.of_region(0), palettes.of_region(1)} <= legend
    assert palettes.of_region(0) in colors(drawn.crop((0, 0, 400, 600)))  # the name's ground


def test_segments_of_a_class_have_shades_and_one_entry_in_the_legend():
    drawn = panoptic().draw()
    first, second = palettes.shades(palettes.of_region(0), 2)
    assert near(drawn.getpixel((20, 20)), mixed(first))
    assert near(drawn.getpixel((780, 20)), mixed(second))
    assert near(drawn.getpixel((20, 400)), mixed(palettes.of_region(1)))
    legend = colors(drawn.crop((0, 600, 800, drawn.height)))
    assert palettes.of_region(0) in legend
    assert second not in legend


@pytest.mark.parametrize("draw", [lambda **o: semantic(**o).draw(legend=False),
                                  lambda **o: panoptic(**o).draw(legend=False)])  # fmt: skip
def test_without_a_legend_images_keep_their_size(draw):
    assert draw(height=480, width=640).size == (640, 480)
    assert draw(height=3000, width=6400).size == (1600, 750)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 900), (900, 1), (20, 17), (1200, 1600)])
def test_any_size_can_be_drawn(size):
    height, width = size
    labels = torch.randint(0, 200, size)
    image = Image.new("RGB", (width, height), GRAY)
    assert max(SemanticMap(labels, image=image).draw().size) >= 640
    numbers = labels.unique().tolist()
    segments = tuple(Segment(i, i, i % 2 == 0, 0.5, int((labels == i).sum())) for i in numbers if i)
    assert max(PanopticMap(labels.int(), segments, image=image).draw().size) >= 640


def test_strange_names_and_empty_maps_can_be_drawn():
    named = semantic(names=("<$x_\n", "名" * 300))
    assert named.draw().width == 800
    nothing = torch.full((60, 80), IGNORED)
    assert SemanticMap(nothing, image=Image.new("RGB", (80, 60))).draw().size == (640, 480)
    empty = PanopticMap(torch.zeros(60, 80, dtype=torch.int32), (), image=Image.new("RGB", (80, 60)))
    assert empty.draw().size == (640, 480)


@pytest.mark.parametrize("result", [semantic(image=None, path="street.jpg"), panoptic(image=None, path="street.jpg")])
def test_without_an_image_there_is_nothing_to_draw_on(result, tmp_path):
    with pytest.raises(ConfigError, match=r"street\.jpg"):
        result.save(tmp_path / "a.png")


def test_names_do_not_cover_each_other():
    drawn = panoptic().draw(legend=False)
    pixels = np.asarray(drawn)
    grounds = [palettes.shades(palettes.of_region(0), 2)[0], palettes.shades(palettes.of_region(0), 2)[1]]
    for ground in grounds:  # each whole: a filled box with text in it
        rows, columns = np.nonzero((pixels == ground).all(-1))
        assert len(rows) > 0.4 * (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


# --- what a map says, and its files


def test_shares_are_of_all_pixels_the_largest_class_first():
    result = semantic()
    assert result.shares() == pytest.approx({0: 0.45, 1: 0.45})
    assert [entry["name"] for entry in result.to_dict()["classes"]] == ["road", "sky"]
    many = SemanticMap(torch.tensor([[IGNORED, 300, 300]]), names=tuple(map(str, range(301))))
    assert many.shares() == pytest.approx({300: 2 / 3, 255: 1 / 3})  # there, 255 is a class like others
    assert panoptic().to_dict()["segments"][2] == {
        "id": 300, "label": 1, "is_thing": False, "score": 0.7, "area": 192000, "name": "road",
    }  # fmt: skip


def test_label_maps_hold_classes_and_their_colors(tmp_path):
    with Image.open(semantic().save_labels(tmp_path / "a.png")) as png:
        assert png.mode == "P"
        assert np.array_equal(np.asarray(png), semantic().labels.numpy())
        assert png.convert("RGB").getpixel((700, 0)) == palettes.of_region(1)
        assert png.convert("RGB").getpixel((0, 599)) == (0, 0, 0)


def test_label_maps_of_many_classes_have_16_bits(tmp_path):
    labels = torch.tensor([[0, 255, 299]])
    many = SemanticMap(labels, names=tuple(map(str, range(300))))
    with Image.open(many.save_labels(tmp_path / "a.png")) as png:
        assert png.mode == "I;16"
        assert np.asarray(png).tolist() == labels.tolist()


def test_segments_are_written_as_coco_has_them(tmp_path):
    result = panoptic()
    with Image.open(result.save_ids(tmp_path / "a.png")) as png:
        channels = np.asarray(png).astype(int)
    assert np.array_equal(channels @ (1, 256, 65536), result.ids.numpy())
    entry = result.to_coco(7, "a.png", (10, 20))
    assert (entry["image_id"], entry["file_name"]) == (7, "a.png")
    assert entry["segments_info"][2] == {
        "id": 300, "category_id": 20, "area": 192000, "bbox": [0, 300, 800, 240], "iscrowd": 0,
    }  # fmt: skip
