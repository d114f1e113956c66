"""Results in other people's code: compared, indexed, as tables and as objects of other libraries."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet.errors import InputError
from focalnet.results import Classification, Detections, MultiLabel, PanopticMap, Segment, SemanticMap

MASKS = torch.zeros(2, 30, 40, dtype=torch.bool)
MASKS[0, 2:12, 1:9] = True
MASKS[1, 3:20, 3:20] = True
BOXES = torch.tensor([[1.0, 2, 9, 12], [3, 3, 20, 20]])
OBJECTS = Detections(BOXES, torch.tensor([0.9, 0.5]), torch.tensor([0, 1]), ("ant", "bee"), MASKS, (30, 40))
CLASSES = Classification((2, 0), (0.75, 0.25), ("cat", "dog"), path="a.jpg", logits=torch.zeros(3))
SEVERAL = MultiLabel((2, 0), (0.75, 0.6), ("cat", "dog"), path="a.jpg", logits=torch.zeros(3))
LABELS = SemanticMap(torch.tensor([[0, 0, 1], [0, 255, 1]]), ("sea", "sky"))
SEGMENTS = PanopticMap(
    torch.tensor([[1, 1, 2], [1, 0, 2]], dtype=torch.int32),
    (Segment(1, 0, True, 0.9, 3), Segment(2, 1, False, 0.5, 2)),
    ("car", "sky"),
)
ALL = (OBJECTS, CLASSES, SEVERAL, LABELS, SEGMENTS)


@pytest.mark.parametrize(
    ("result", "changes"),
    [
        (OBJECTS, {"boxes": BOXES + 1}),
        (OBJECTS, {"boxes": BOXES[:1]}),
        (OBJECTS, {"boxes": BOXES.double()}),
        (OBJECTS, {"masks": None}),
        (OBJECTS, {"names": ("ant", "wasp")}),
        (CLASSES, {"scores": (0.75, 0.2)}),
        (LABELS, {"labels": LABELS.labels + 1}),
        (SEGMENTS, {"ids": SEGMENTS.ids.flip(1)}),
        (SEGMENTS, {"path": "b.jpg"}),
    ],
)
def test_results_are_equal_by_value(result, changes):
    copy = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    copy = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in copy.items()}
    again = dataclasses.replace(type(result)(**copy), image=Image.new("RGB", (2, 2)))
    assert again == result
    assert hash(again) == hash(result)
    assert len({result, again}) == 1
    assert dataclasses.replace(result, **changes) != result
    assert result != "something else"


def test_undefined_and_half_precision_values_are_equal_to_themselves():
    for scores in (torch.tensor([torch.nan, 0.5]), torch.tensor([0.9, 0.5]).bfloat16()):
        result = dataclasses.replace(OBJECTS, scores=scores)
        assert result == dataclasses.replace(OBJECTS, scores=scores.clone())
        assert result != OBJECTS


def test_results_of_exported_networks_hold_arrays():
    """They do all that those of PyTorch do, and are not equal to these: arrays are not tensors."""
    for result in (OBJECTS, LABELS, SEGMENTS):
        values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        arrays = {k: v.numpy().copy() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        one, other = type(result)(**arrays), type(result)(**arrays)
        assert one == other
        assert one != result
        assert repr(one) == repr(result)
        assert one.table_rows() == result.table_rows()
        one.to_torchvision()
    boxes = dataclasses.replace(OBJECTS, boxes=BOXES.numpy(), masks=MASKS.numpy(), labels=np.array([0, 1]))
    assert boxes[1].box == (3, 3, 20, 20)
    assert boxes.to_label_studio() == OBJECTS.to_label_studio()


def test_short_forms():
    assert repr(OBJECTS) == "Detections(1 ant, 1 bee; 40 x 30)"
    assert repr(OBJECTS[:0]) == "Detections(no objects; 40 x 30)"
    assert repr(CLASSES) == "Classification(cat 75.0%, dog 25.0%; a.jpg)"
    assert repr(SEVERAL) == "MultiLabel(cat 75.0%, dog 60.0%; a.jpg)"
    assert repr(MultiLabel((), (), ())) == "MultiLabel(no class)"
    assert repr(LABELS) == "SemanticMap(sea 50.0 %, sky 33.3 %; 3 x 2)"
    assert repr(SEGMENTS) == "PanopticMap(1 car, 1 sky; 3 x 2)"
    many = Classification(tuple(range(9)), (0.1,) * 9, tuple("abcdefgh\n"))
    assert repr(many) == "Classification(a 10.0%, b 10.0%, c 10.0%, 6 more)"
    assert "\n" not in repr(dataclasses.replace(CLASSES, names=("a\n", "b")))


def test_detections_are_a_sequence_of_objects():
    assert [(one.name, one.label, round(one.score, 2), one.box) for one in OBJECTS] == [
        ("ant", 0, 0.9, (1, 2, 9, 12)), ("bee", 1, 0.5, (3, 3, 20, 20)),
    ]  # fmt: skip
    last = OBJECTS[-1]
    assert last.mask is not None
    assert torch.equal(last.mask, MASKS[1])
    for some in (OBJECTS[1:], OBJECTS[OBJECTS.labels == 1], OBJECTS[[1]], OBJECTS[torch.tensor([1])]):
        assert (len(some), some[0].name) == (1, "bee")
        assert some.masks is not None
        assert torch.equal(some.masks, MASKS[1:])
    for first in (OBJECTS[np.int64(0)], OBJECTS[torch.tensor(0)]):
        assert first.name == "ant"
    assert [one.name for one in OBJECTS[::-1]] == ["bee", "ant"]
    for index in (2, -3):
        with pytest.raises(IndexError):
            OBJECTS[index]


def test_the_others_are_sequences_too():
    assert CLASSES[0] == (2, "cat", 0.75)
    assert [found.name for found in CLASSES] == [found.name for found in CLASSES[:2]] == ["cat", "dog"]
    assert [found.name for found in LABELS] == ["sea", "sky"]
    assert LABELS["sky"].tolist() == LABELS[1].tolist() == [[False, False, True]] * 2
    with pytest.raises(InputError, match='no class "see"; did you mean "sea"'):
        LABELS["see"]
    assert [segment.id for segment in SEGMENTS] == [1, 2]
    assert SEGMENTS.mask(SEGMENTS[0]).sum() == 3
    assert [len(result) for result in ALL] == [2, 2, 2, 2, 2]


def test_every_row_of_a_table_has_its_columns_and_plain_values():
    for result in ALL:
        rows = result.table_rows()
        assert [tuple(row) for row in rows] == [result.table_columns] * 2
        json.dumps(rows)
    assert OBJECTS.table_rows()[0] == {
        "label": 0, "name": "ant", "score": pytest.approx(0.9), "x1": 1.0, "y1": 2.0, "x2": 9.0, "y2": 12.0,
    }  # fmt: skip


def test_tables_of_pandas():
    pytest.importorskip("pandas")
    for result in (*ALL, OBJECTS[:0]):
        table = result.to_pandas()
        assert list(table.columns) == ["path", *result.table_columns]
        assert len(table) == len(result)
    assert CLASSES.to_pandas()["path"].tolist() == ["a.jpg", "a.jpg"]


def test_objects_of_torchvision():
    from torchvision.transforms import v2

    flipped = v2.RandomHorizontalFlip(1.0)(OBJECTS.to_torchvision())
    assert flipped["boxes"].tolist() == [[31, 2, 39, 12], [20, 3, 37, 20]]
    assert torch.equal(flipped["masks"], MASKS.flip(-1))
    assert "masks" not in dataclasses.replace(OBJECTS, masks=None).to_torchvision()
    for result, values in ((LABELS, LABELS.labels), (SEGMENTS, SEGMENTS.ids)):
        assert torch.equal(v2.RandomHorizontalFlip(1.0)(result.to_torchvision()), values.flip(-1))


def test_objects_of_supervision():
    supervision = pytest.importorskip("supervision")
    found = OBJECTS.to_supervision()
    assert np.array_equal(found.xyxy, BOXES.numpy())
    assert np.array_equal(found.mask, MASKS.numpy())
    assert found["class_name"].tolist() == ["ant", "bee"]
    assert len(found[found.confidence > 0.6]) == 1
    assert len(OBJECTS[:0].to_supervision()) == 0
    assert CLASSES.to_supervision().get_top_k(1)[0].tolist() == [2]
    assert LABELS.to_supervision().xyxy.tolist() == [[0, 0, 2, 2], [2, 0, 3, 2]]
    segments = SEGMENTS.to_supervision()
    assert segments.confidence.tolist() == pytest.approx([0.9, 0.5])
    scene = supervision.MaskAnnotator().annotate(np.zeros((30, 40, 3), np.uint8), found)
    assert scene.any()


def test_objects_of_fiftyone():
    pytest.importorskip("fiftyone")
    ant, _ = OBJECTS.to_fiftyone().detections
    assert (ant.label, ant.bounding_box) == ("ant", pytest.approx([1 / 40, 2 / 30, 8 / 40, 10 / 30]))
    assert ant.mask.shape == (10, 8)
    assert ant.mask.all()
    assert CLASSES.to_fiftyone().label == "cat"
    assert [one.label for one in SEVERAL.to_fiftyone().classifications] == ["cat", "dog"]
    assert LABELS.to_fiftyone().mask.tolist() == [[1, 1, 2], [1, 0, 2]]
    assert SEGMENTS.to_fiftyone().mask.tolist() == [[1, 1, 2], [1, 0, 2]]


def test_other_tools_get_what_is_inside_of_the_image(monkeypatch):
    fiftyone = SimpleNamespace(Detection=SimpleNamespace, Detections=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    corners = torch.tensor([[-9.0, -5, 9, 12], [3, 3, 80, 60], [50, 40, 60, 45]])
    masks = torch.cat([MASKS, MASKS[:1]])
    objects = Detections(corners, torch.ones(3), torch.zeros(3, dtype=torch.int64), ("ant",), masks, (30, 40))
    ant, large, beyond = objects.to_fiftyone().detections
    assert ant.bounding_box == pytest.approx([0, 0, 9 / 40, 12 / 30])
    assert ant.mask.tolist() == MASKS[0, :12, :9].tolist()
    assert large.bounding_box == pytest.approx([3 / 40, 0.1, 37 / 40, 0.9])
    assert large.mask.tolist() == MASKS[1, 3:, 3:].tolist()
    assert beyond.bounding_box == [1, 1, 0, 0]
    regions = [one["value"] for one in objects.to_label_studio()["result"]]
    assert [(one["x"], one["width"]) for one in regions] == [(0, 22.5), (7.5, 92.5), (100, 0)]


def test_predictions_of_label_studio_are_read_again(tmp_path):
    """By our own reader of its export, which takes them as annotations."""
    from focalnet.data.formats.sets import find_set

    prediction = json.loads(json.dumps(OBJECTS.to_label_studio("mine")))
    assert (prediction["model_version"], prediction["score"]) == ("mine", pytest.approx(0.7))
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    task = {"id": 1, "data": {"image": "a.png"}, "annotations": [prediction]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    found = find_set(tmp_path)
    assert found is not None
    content = found.content(None).content
    assert [one["bbox"] for one in content["annotations"]] == [[1, 2, 8, 10], [3, 3, 17, 17]]
    choice = CLASSES.to_label_studio()["result"][0]
    assert (choice["type"], choice["value"]) == ("choices", {"choices": ["cat"]})
    several = SEVERAL.to_label_studio()
    assert several["result"][0]["value"] == {"choices": ["cat", "dog"]}
    assert several["score"] == 0.6
    assert MultiLabel((), (), ()).to_label_studio()["result"] == []


def test_showing_opens_the_drawing(monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image.size))
    dataclasses.replace(OBJECTS, image=Image.new("RGB", (40, 30))).show(scores=False)
    assert shown == [(320, 240)]
