"""Pictures of objects, and figures on how well they are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet.errors import ConfigError
from focalnet.results import Detections
from focalnet.visualize import draw_confusion, draw_detections, draw_precision_recall, palettes
from focalnet.visualize.canvas import render

PICTURE = Image.new("RGB", (400, 300), (128, 128, 128))


def detections(boxes: list[list[float]], masks: bool = False, **options) -> Detections:
    count = len(boxes)
    bitmaps = torch.zeros(count, 300, 400, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(bitmaps, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    defaults = {"names": ("ant", "bee"), "size": (300, 400), "image": PICTURE, "masks": bitmaps if masks else None}
    scores = torch.linspace(0.9, 0.5, count)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(corners, scores, torch.arange(count) % 2, **{**defaults, **options})


def colours(picture: Image.Image) -> set[tuple[int, int, int]]:
    return set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


def test_each_class_has_its_colour_and_masks_fill_their_place():
    found = detections([[20, 60, 120, 160], [200, 100, 300, 250]], masks=True)
    drawn = draw_detections(found)
    assert drawn.size == PICTURE.size
    for label in (0, 1):
        assert palettes.rgb(palettes.of_class(label)) in colours(drawn)
    assert drawn.getpixel((70, 110)) != (128, 128, 128)  # within a mask
    assert drawn.getpixel((160, 30)) == (128, 128, 128)  # beside everything
    assert draw_detections(detections([[20, 60, 120, 160]])).getpixel((70, 110)) == (128, 128, 128)


def test_the_best_object_is_on_top():
    drawn = draw_detections(detections([[50, 50, 150, 150], [50, 50, 150, 150]], masks=True))
    blue = palettes.rgb(palettes.of_class(0))
    assert drawn.getpixel((150, 100)) == blue


@pytest.mark.parametrize(
    "found",
    [
        detections([]),
        detections([], masks=True),
        detections([[-50, -50, 900, 900]]),
        detections([[30, 30, 20, 20]]),
        detections([[10, 10, 60, 60]], names=()),
        detections([[10, 10, 60, 60]], names=("<$x_\n", "b")),
        detections([[0, 0, 4, 4]], image=Image.new("RGB", (5, 5)), size=(5, 5)),
    ],
)
def test_whatever_was_found_can_be_drawn(found):
    assert max(draw_detections(found).size) >= 320


def test_in_a_crowd_only_names_that_fit_are_written():
    small = [[20.0 * i, 100.0, 20.0 * i + 8, 108.0] for i in range(18)]
    few, crowd = detections([*small, [10, 150, 390, 290]]), detections([*small, [10, 150, 390, 290], [5, 20, 395, 90]])
    written = [(np.asarray(draw_detections(one))[95:99] != 128).any() for one in (few, crowd)]
    assert written == [True, False]
    below = draw_detections(crowd)
    assert below.height > draw_detections(few).height  # the legend


def test_true_objects_are_drawn_without_scores():
    found = detections([[20, 60, 120, 160]])
    with_score, without = (np.asarray(draw_detections(found, scores=on)) for on in (True, False))
    changed = (with_score != without).any(-1).nonzero()
    assert len(changed[0])
    assert changed[0].max() <= 64 * with_score.shape[0] / found.image.height  # the label above the box, nothing else


def test_saving_draws(tmp_path):
    path = detections([[20, 60, 120, 160]]).save(tmp_path / "out/found.png")
    with Image.open(path) as picture:
        assert palettes.rgb(palettes.of_class(0)) in colours(picture.convert("RGB"))


def test_without_a_picture_there_is_nothing_to_draw_on():
    with pytest.raises(ConfigError, match=r"street\.jpg"):
        draw_detections(detections([], image=None, path="street.jpg"))


def test_above_and_to_dict():
    found = detections([[1, 2, 3, 4], [5, 6, 7, 8]], masks=True, path="a.png").above(0.6)
    assert (len(found), found.masks.shape[0]) == (1, 1)
    written = found.to_dict()
    assert (written["path"], written["height"], written["width"]) == ("a.png", 300, 400)
    (only,) = written["objects"]
    assert (only["label"], only["name"], only["box"]) == (0, "ant", [1, 2, 3, 4])


def test_figures_have_a_line_for_each_class_that_is_there():
    precision = np.full((10, 101, 3), 80.0)
    precision[:, :, 1] = np.nan
    figure = draw_precision_recall(precision, ["ant", "$bee", "cat"])
    assert [len(axes.lines) for axes in figure.axes] == [3, 3]
    assert render(figure).width > 500
    many = draw_precision_recall(np.full((10, 101, 80), 50.0), [str(i) for i in range(80)])
    assert [len(axes.lines) for axes in many.axes] == [1, 1]
    nothing = draw_precision_recall(np.full((10, 101, 1), np.nan), ["ant"])
    assert [len(axes.lines) for axes in nothing.axes] == [0, 0]


def test_a_confusion_matrix_shows_its_counts():
    figure = draw_confusion(np.array([[3, 0], [1, 2]]), ["ant", "nothing there"], ["ant", "missed"])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "2", "3"]
