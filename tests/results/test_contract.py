"""What all results can do, whatever a model predicted and whatever classes are called."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from focalnet.errors import ConfigError
from focalnet.results import Classification, Detections, MultiLabel, PanopticMap, Result, Segment, SemanticMap
from focalnet.samples import IGNORED

SIZES = [(1, 1), (3, 1), (40, 30)]  # width and height
NAMES = [(), ("ant", "bee", "cat"), ("<b>&\"'$x_\n\x1e\\", "猫" * 90, ""), ("\u202e🐈\ufffd", "\ud800", "a" * 400)]


def classification(size: tuple[int, int], names: tuple[str, ...], count: int) -> Classification:
    known = names or tuple(f"class {i}" for i in range(3))
    return Classification(tuple(range(count)), (0.7, 0.2, 0.0)[:count], known[:count])


def multi_label(size: tuple[int, int], names: tuple[str, ...], count: int) -> MultiLabel:
    single = classification(size, names, count)
    return MultiLabel(single.labels, single.scores, single.names)


def detections(size: tuple[int, int], names: tuple[str, ...], count: int) -> Detections:
    width, height = size
    boxes = torch.tensor([[0.0, 0.0, width, height]]).repeat(count, 1)
    masks = torch.ones(count, height, width, dtype=torch.bool)
    return Detections(boxes, torch.tensor([0.75, 0.5, 0.25])[:count], torch.arange(count), names, masks, size[::-1])


def semantic(size: tuple[int, int], names: tuple[str, ...], count: int) -> SemanticMap:
    ids = torch.arange(size[0] * size[1]).reshape(size[::-1])
    return SemanticMap(ids % count if count else torch.full_like(ids, IGNORED), names)


def panoptic(size: tuple[int, int], names: tuple[str, ...], count: int) -> PanopticMap:
    ids = torch.arange(size[0] * size[1]).reshape(size[::-1]) % (count + 1)
    segments = [Segment(i + 1, i, i < 2, 0.5, int((ids == i + 1).sum())) for i in range(count)]
    return PanopticMap(ids.int(), tuple(segments), names)


def without_masks(size: tuple[int, int], names: tuple[str, ...], count: int) -> Detections:
    return dataclasses.replace(detections(size, names, count), masks=None)


MAKERS: list[Callable[..., Result]] = [classification, detections, without_masks, semantic, panoptic, multi_label]
each = pytest.mark.parametrize("make", MAKERS)


def with_image(result: Result, size: tuple[int, int], mode: str = "RGB") -> Result:
    return dataclasses.replace(result, image=Image.new(mode, size), path="street.jpg")


@each
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("names", NAMES, ids=["unknown", "plain", "html", "unprintable"])
@pytest.mark.parametrize("size", SIZES)
def test_any_result_says_and_draws_itself(make, size, names, count, tmp_path: Path) -> None:
    result = with_image(make(size, names, count), size)
    assert result.image is not None
    assert json.loads(json.dumps(result.to_dict()))["path"] == "street.jpg"
    assert all(isinstance(line, str) for line in result.summary())
    drawn = result.draw()
    assert drawn.mode == "RGB"
    assert max(drawn.size) >= 320
    frame = result.draw(as_frame=True)
    assert (frame.mode, frame.size) == ("RGB", size)
    assert result.image.getextrema() == ((0, 0),) * 3  # it is drawn on a copy
    with Image.open(result.save(tmp_path / "new/a.png")) as saved:
        assert saved.tobytes() == drawn.tobytes()
    png = result._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as shown:
        assert (shown.format, shown.tobytes()) == ("PNG", drawn.tobytes())


@each
@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "P", "CMYK", "I;16"])
def test_images_of_any_mode_are_drawn_on(make, mode: str) -> None:
    result = with_image(make((40, 30), (), 3), (40, 30), mode)
    assert {result.draw().mode, result.draw(as_frame=True).mode} == {"RGB"}


@each
@pytest.mark.parametrize("path", ["street.jpg", None])
def test_without_an_image_it_says_how_to_get_one(make, path: str | None, tmp_path: Path) -> None:
    result = dataclasses.replace(make((40, 30), ("ant",), 1), path=path)
    assert result._repr_png_() is None
    assert result.to_dict()["path"] == path
    assert result.summary()
    for draw in (result.draw, lambda: result.draw(as_frame=True), lambda: result.save(tmp_path / "a.png")):
        with pytest.raises(ConfigError, match=r"replace\(result, image=\.\.\.\)") as error:
            draw()
        assert "\n" not in str(error.value)
        assert (path or "this image") in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_summaries_of_nothing() -> None:
    assert [make((40, 30), (), 0).summary() for make in MAKERS] == [
        [], ["no objects"], ["no objects"], [], [], ["no class"],
    ]  # fmt: skip


def test_summaries_count_and_measure() -> None:
    assert classification((1, 1), ("ant", "<b>", "cat"), 2).summary() == [" 70.0 %  ant", " 20.0 %  <b>"]
    assert detections((8, 8), ("ant",), 3).summary() == ["1 ant, 1 class 1, 1 class 2"]
    assert semantic((3, 1), ("ant", "bee"), 3).summary() == [" 33.3 %  ant", " 33.3 %  bee", " 33.3 %  class 2"]
    assert panoptic((4, 1), ("ant", "bee"), 3).summary() == [
        " 25.0 %  ant (1)", " 25.0 %  bee (1)", " 25.0 %  class 2",
    ]  # fmt: skip
    small = torch.zeros(100, 100, dtype=torch.int64)
    small[0, :2] = torch.tensor([1, 2])
    assert SemanticMap(small, ("sea", "ant", "bee")).summary() == ["100.0 %  sea", "< 0.1 %  ant, bee"]


def test_entries_name_classes_and_places() -> None:
    assert classification((1, 1), ("ant",), 1).to_dict() == {
        "path": None, "top": [{"label": 0, "name": "ant", "score": 0.7}],
    }  # fmt: skip
    assert multi_label((1, 1), ("ant",), 1).to_dict() == {
        "path": None, "labels": [{"label": 0, "name": "ant", "score": 0.7}],
    }  # fmt: skip
    assert detections((4, 2), (), 1).to_dict() == {
        "path": None, "height": 2, "width": 4,
        "objects": [{"label": 0, "name": "class 0", "score": 0.75, "box": [0.0, 0.0, 4.0, 2.0]}],
    }  # fmt: skip
    assert semantic((4, 2), ("ant",), 2).to_dict() == {
        "path": None, "height": 2, "width": 4,
        "classes": [{"label": 0, "name": "ant", "share": 0.5}, {"label": 1, "name": "class 1", "share": 0.5}],
    }  # fmt: skip
    assert panoptic((4, 2), ("ant",), 1).to_dict() == {
        "path": None, "height": 2, "width": 4,
        "segments": [{"id": 1, "label": 0, "is_thing": True, "score": 0.5, "area": 4, "name": "ant"}],
    }  # fmt: skip


def test_each_writes_its_maps_and_lists(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="COCO needs the extra dense")
    results = [dataclasses.replace(make((4, 2), ("ant",), 1), path="in/street.jpg") for make in MAKERS]
    assert [result.write_maps(tmp_path, "street") for result in results] == [
        {}, {}, {}, {"labels": str(tmp_path / "street.labels.png")}, {"ids": str(tmp_path / "street.panoptic.png")},
        {},
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["street.labels.png", "street.panoptic.png"]
    lists = [result.coco_entries(7, ["a"], "street") for result in results]
    assert [list(one) for one in lists] == [[], ["detections"], ["detections"], [], ["images", "annotations"], []]
    assert lists[2]["detections"] == [{"image_id": 7, "category_id": "a", "bbox": [0, 0, 4, 2], "score": 0.75}]
    assert lists[4]["images"] == [{"id": 7, "file_name": "street.jpg", "height": 2, "width": 4}]
    assert lists[4]["annotations"] == [results[4].to_coco(7, "street.panoptic.png", ["a"])]
