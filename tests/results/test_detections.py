"""Objects: how they are drawn, and COCO's form of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet.errors import ConfigError
from focalnet.results import Detections
from focalnet.visualize import palettes

IMAGE = Image.new("RGB", (400, 300), (128, 128, 128))


def detections(boxes: list[list[float]], masks: bool = False, **options) -> Detections:
    count = len(boxes)
    bitmaps = torch.zeros(count, 300, 400, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(bitmaps, boxes, strict=True) if masks else ():
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    defaults = {"names": ("ant", "bee"), "size": (300, 400), "image": IMAGE, "masks": bitmaps if masks else None}
    scores = torch.linspace(0.9, 0.5, count)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(corners, scores, torch.arange(count) % 2, **{**defaults, **options})


def colors(image: Image.Image) -> set[tuple[int, int, int]]:
    return set(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))


def test_each_class_has_its_color_and_masks_fill_their_place():
    predicted = detections([[20, 60, 120, 160], [200, 100, 300, 250]], masks=True)
    drawn = predicted.draw()
    assert drawn.size == IMAGE.size
    for label in (0, 1):
        assert palettes.rgb(palettes.of_class(label)) in colors(drawn)
    assert drawn.getpixel((70, 110)) != (128, 128, 128)  # within a mask
    assert drawn.getpixel((160, 30)) == (128, 128, 128)  # beside everything
    assert detections([[20, 60, 120, 160]]).draw().getpixel((70, 110)) == (128, 128, 128)


def test_the_best_object_is_on_top():
    drawn = detections([[50, 50, 150, 150], [50, 50, 150, 150]], masks=True).draw()
    blue = palettes.rgb(palettes.of_class(0))
    assert drawn.getpixel((150, 100)) == blue


@pytest.mark.parametrize(
    "predicted",
    [
        detections([]),
        detections([], masks=True),
        detections([[-50, -50, 900, 900]]),
        detections([[30, 30, 20, 20]]),
        detections([[float("nan")] * 4, [0, 0, float("inf"), 9], [-1e30, -1e30, 1e30, 1e30]]),
        detections([[10, 10, 60, 60]], names=()),
        detections([[10, 10, 60, 60]], names=("<$x_\n", "b")),
        detections([[0, 0, 4, 4]], image=Image.new("RGB", (5, 5)), size=(5, 5)),
    ],
)
def test_any_prediction_can_be_drawn(predicted):
    assert max(predicted.draw().size) >= 320


def test_in_a_crowd_only_names_that_fit_are_written():
    small = [[20.0 * i, 100.0, 20.0 * i + 8, 108.0] for i in range(18)]
    few, crowd = detections([*small, [10, 150, 390, 290]]), detections([*small, [10, 150, 390, 290], [5, 20, 395, 90]])
    written = [(np.asarray(one.draw())[95:99] != 128).any() for one in (few, crowd)]
    assert written == [True, False]
    below = crowd.draw()
    assert below.height > few.draw().height  # the legend


def test_true_objects_are_drawn_without_scores():
    predicted = detections([[20, 60, 120, 160]])
    with_score, without = (np.asarray(predicted.draw(scores=on)) for on in (True, False))
    changed = (with_score != without).any(-1).nonzero()
    assert len(changed[0])
    # The label above the box, nothing else.
    assert changed[0].max() <= 64 * with_score.shape[0] / predicted.image.height


def test_saving_draws(tmp_path):
    path = detections([[20, 60, 120, 160]]).save(tmp_path / "out/predicted.png")
    with Image.open(path) as image:
        assert palettes.rgb(palettes.of_class(0)) in colors(image.convert("RGB"))


def test_without_an_image_there_is_nothing_to_draw_on():
    with pytest.raises(ConfigError, match=r"street\.jpg"):
        detections([], image=None, path="street.jpg").draw()


def test_above_and_to_dict():
    predicted = detections([[1, 2, 3, 4], [5, 6, 7, 8]], masks=True, path="a.png").above(0.6)
    assert (len(predicted), predicted.masks.shape[0]) == (1, 1)
    written = predicted.to_dict()
    assert (written["path"], written["height"], written["width"]) == ("a.png", 300, 400)
    (only,) = written["objects"]
    assert (only["label"], only["name"], only["box"]) == (0, "ant", [1, 2, 3, 4])


def test_to_coco_gives_cocos_result_form():
    mask = pytest.importorskip("pycocotools.mask", reason="COCO needs the extra dense")
    predicted = detections([[10, 20, 30, 40], [15, 20, 40, 50]], masks=True)
    one, other = json.loads(json.dumps(predicted.to_coco(12, [3, 7])))
    assert (one["image_id"], one["category_id"], one["bbox"]) == (12, 3, [10, 20, 20, 20])
    assert one["score"] == pytest.approx(0.9)
    assert mask.area(one["segmentation"]) == 400
    assert (other["category_id"], other["bbox"]) == (7, [15, 20, 25, 30])
    assert "segmentation" not in detections([[10, 20, 30, 40]]).to_coco(1, ["a", "b"])[0]
    assert detections([], masks=True).to_coco(1, [1, 2]) == []
    assert torch.equal(predicted.boxes[0], torch.tensor([10.0, 20.0, 30.0, 40.0]))  # is not written to
