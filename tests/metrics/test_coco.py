"""The figures are those of pycocotools, and mean what they say on cases that can be worked out by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.errors import DataError, InputError
from focalnet.metrics.coco import CocoMetric, summary
from focalnet.results import Detections

cocoapi = pytest.importorskip("pycocotools.coco", reason="detection needs the extra dense")
CATEGORIES = [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}, {"id": 90, "name": "cat"}]  # ids with gaps
SIDE = 200


def bitmap(box: list[float]) -> torch.Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    left, top, width, height = (round(v) for v in box)
    mask[top : top + height, left : left + width] = True
    return mask


def annotation(number: int, image: int, category: int, box: list[float], *, crowd: bool = False) -> dict[str, Any]:
    from pycocotools import mask

    code = mask.encode(np.asfortranarray(bitmap(box).numpy().astype(np.uint8)))
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3],
        "iscrowd": int(crowd), "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }  # fmt: skip


def content(annotations: list[dict[str, Any]], images: int) -> dict[str, Any]:
    listed = [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in range(1, images + 1)]
    return {"images": listed, "annotations": annotations, "categories": CATEGORIES}


def detections(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detections:
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32).reshape(-1, 4)
    masks = torch.stack([bitmap(box) for box in boxes]) if boxes else torch.zeros(0, SIDE, SIDE, dtype=torch.bool)
    return Detections(
        corners, torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), masks=masks, size=(SIDE, SIDE)
    )


@pytest.fixture(scope="module")
def scene() -> tuple[dict[str, Any], list[Detections]]:
    """40 images: objects of all sizes, some crowds, some empty; detections that hit, miss, double and confuse."""
    draw = np.random.default_rng(0)
    truth, found = [], []
    for image in range(1, 41):
        boxes, labels = [], []
        for _ in range(int(draw.integers(0, 8))):
            width, height = np.rint(np.exp(draw.uniform(np.log(5), np.log(130), 2)))
            left, top = (int(draw.integers(0, SIDE - side + 1)) for side in (width, height))
            label = int(draw.integers(0, 3))
            boxes.append([float(left), float(top), float(width), float(height)])
            labels.append(label)
            crowd = bool(draw.random() < 0.15)
            truth.append(annotation(len(truth) + 1, image, CATEGORIES[label]["id"], boxes[-1], crowd=crowd))
        seen, seen_labels = [], []
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(int(draw.integers(0, 3))):
                shifted = np.clip(np.rint(np.array(box) + draw.normal(0, 4, 4)), 1, SIDE).tolist()
                seen.append(shifted)
                seen_labels.append(label if draw.random() < 0.8 else int(draw.integers(0, 3)))
        found.append(detections(seen, seen_labels, draw.random(len(seen)).tolist()))
    return content(truth, 40), found


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_equals_pycocotools(kind, scene, tmp_path):
    from pycocotools.cocoeval import COCOeval

    truth, found = scene
    metric = CocoMetric(truth, masks=True)
    for start in range(0, 40, 7):  # in pieces, as batches come
        metric.update(found[start : start + 7], range(start + 1, min(start + 8, 41)))
    ours = metric.compute()[kind]

    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(metric.results))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = cocoapi.COCO(str(tmp_path / "truth.json"))
        loaded = reference.loadRes(str(tmp_path / "found.json"))
        whole = COCOeval(reference, loaded, {"box": "bbox", "mask": "segm"}[kind])
        for step in (whole.evaluate, whole.accumulate, whole.summarize):
            step()
        assert list(ours.stats.values()) == pytest.approx((100 * whole.stats).tolist(), abs=1e-6, nan_ok=True)
        for category in CATEGORIES:
            one = COCOeval(reference, loaded, {"box": "bbox", "mask": "segm"}[kind])
            one.params.catIds = [category["id"]]
            for step in (one.evaluate, one.accumulate, one.summarize):
                step()
            by_class = ours.by_class[category["name"]]
            expected = {"ap": one.stats[0], "ap50": one.stats[1], "ar_100": one.stats[8]}
            assert by_class == pytest.approx({k: 100 * v for k, v in expected.items()}, abs=1e-6)
    assert 5 < ours.stats["ap"] < 95  # the scene is neither hopeless nor trivial


def one_object(found: Detections, *, crowd: bool = False) -> dict[str, float]:
    truth = [annotation(1, 1, 7, [10, 10, 40, 40], crowd=crowd), annotation(2, 2, 3, [0, 0, 20, 20])]
    metric = CocoMetric(content(truth, 3))
    metric.update([found], [1])
    metric.update([detections([[0, 0, 20, 20]], [0], [0.9])], [2])
    metric.update([detections([], [], [])], [3])
    return summary(metric.compute())


def test_a_perfect_answer_is_100_and_a_wrong_class_is_not():
    perfect = one_object(detections([[10, 10, 40, 40]], [1], [0.8]))
    assert [perfect[name] for name in ("box_ap", "box_ap50", "box_ar_100")] == pytest.approx([100] * 3)
    assert one_object(detections([[10, 10, 40, 40]], [2], [0.8]))["box_ap"] == pytest.approx(50)


def test_half_an_overlap_counts_at_the_lowest_threshold_only():
    shifted = one_object(detections([[10, 20, 40, 40]], [1], [0.8]))  # IoU 0.6
    assert (shifted["box_ap50"], shifted["box_ap75"]) == pytest.approx((100, 50))
    assert shifted["box_ap"] == pytest.approx((100 + 30) / 2)  # right at 0.50, 0.55 and 0.60 of ten


def test_what_lies_in_a_crowd_is_no_mistake():
    found = detections([[10, 10, 20, 20], [20, 20, 20, 20]], [1, 1], [0.9, 0.8])
    assert one_object(found, crowd=True)["box_ap"] == pytest.approx(100)


def test_sizes_that_are_not_there_have_no_figure():
    stats = one_object(detections([], [], []))
    assert "box_ap_large" not in stats
    assert stats["box_ap_medium"] == 0


def test_nothing_found_at_all():
    metric = CocoMetric(content([annotation(1, 1, 7, [10, 10, 40, 40])], 1), masks=True)
    metric.update([detections([], [], [])], [1])
    assert summary(metric.compute())["mask_ap"] == 0


# --- ids


def relabeled(truth: dict[str, Any], **ids: dict[int, Any]) -> dict[str, Any]:
    """The annotations with other ids: ``images`` and ``categories`` by their ids, ``annotations`` by their places."""
    other = copy.deepcopy(truth)
    for kind, key in (("images", "image_id"), ("categories", "category_id")):
        for entry in other[kind]:
            entry["id"] = ids.get(kind, {}).get(entry["id"], entry["id"])
        for entry in other["annotations"]:
            entry[key] = ids.get(kind, {}).get(entry[key], entry[key])
    for place, entry in enumerate(other["annotations"]):
        entry["id"] = ids.get("annotations", {}).get(place, entry["id"])
    return other


def figures(truth: dict[str, Any], found: list[Detections], image_ids: list[Any]) -> dict[str, Any]:
    metric = CocoMetric(truth, masks=True)
    metric.update(found, image_ids)
    return {k: (v.stats, v.by_class, v.precision) for k, v in metric.compute().items()}


@st.composite
def small_scenes(draw):
    """Up to three images of up to three objects on a coarse grid with few scores, so that ties are many."""
    places = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2))
    images = draw(st.integers(1, 3))
    truth, found = [], []
    for image in range(1, images + 1):
        for column, row, label in draw(st.lists(places, max_size=3)):
            box = [40.0 * column, 40.0 * row, 40.0, 30.0]
            truth.append(annotation(len(truth) + 1, image, CATEGORIES[label]["id"], box, crowd=draw(st.booleans())))
        seen = draw(st.lists(st.tuples(places, st.sampled_from([0.5, 0.9])), max_size=4))
        boxes = [[40.0 * column, 40.0 * row, 40.0, 30.0] for (column, row, _), _ in seen]
        found.append(detections(boxes, [label for (*_, label), _ in seen], [score for _, score in seen]))
    return content(truth, images), found


IDS = st.one_of(st.integers(-5, 2**60), st.text(max_size=3))
ANY_IDS = st.one_of(IDS, st.none(), st.floats(), st.booleans())


@given(st.data())
@settings(max_examples=60)
def test_figures_do_not_depend_on_any_id(data):
    truth, found = data.draw(small_scenes())
    numbers = list(range(1, len(found) + 1))
    expected = figures(truth, found, numbers)
    images = data.draw(st.lists(IDS, min_size=len(found), max_size=len(found), unique=True))
    categories = data.draw(st.lists(IDS, min_size=3, max_size=3, unique=True))
    given_ids = data.draw(st.lists(ANY_IDS, min_size=len(truth["annotations"]), max_size=len(truth["annotations"])))
    other = relabeled(
        truth,
        images=dict(zip(numbers, images, strict=True)),
        categories={one["id"]: new for one, new in zip(CATEGORIES, categories, strict=True)},
        annotations=dict(enumerate(given_ids)),
    )
    order = data.draw(st.permutations(range(len(found))))  # nor on that in which the images are evaluated
    np.testing.assert_equal(figures(other, [found[i] for i in order], [images[i] for i in order]), expected)


@pytest.mark.parametrize("ids", [(0, 1), (1, 2), (0, 0), (None, None), (-1, -2), ("a", "b"), ("0", 0)])
@pytest.mark.parametrize("image_ids", [(0, 1), (1, 2), ("one", "two"), (-7, 12)])
def test_what_is_found_as_it_is_measures_100_whatever_the_ids(ids, image_ids):
    boxes = [[10.0, 10.0, 40.0, 40.0], [60.0, 20.0, 30.0, 30.0]]
    listed = [
        {**annotation(1, image, 0, box), "id": number} for image, number, box in zip(image_ids, ids, boxes, strict=True)
    ]
    for one in listed:
        if one["id"] is None:
            del one["id"]
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in image_ids],
        "categories": [{"id": 0, "name": "ant"}],
        "annotations": listed,
    }
    metric = CocoMetric(truth, masks=True)
    metric.update([detections([box], [0], [0.9]) for box in boxes], image_ids)
    found = summary(metric.compute())
    assert (found["box_ap"], found["mask_ap"], found["box_ar_100"]) == pytest.approx((100, 100, 100))


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("images", {"id": 2}, "image number 2 of the annotations has the id 2 of image number 1"),
        ("images", {"id": None}, "image number 1 of the annotations has no id"),
        ("categories", {"id": 7}, "category number 2 of the annotations has the id 7 of category number 1"),
        ("annotations", {"image_id": "1"}, "annotation number 1: its image_id '1' is not among the ids of the images"),
        ("annotations", {"category_id": 4}, "annotation number 1: its category_id 4 is not among.*e.g. 3"),
    ],
)
def test_ids_that_leave_open_what_is_meant_are_refused(kind, changes, expected):
    truth = content([annotation(1, 1, 7, [10, 10, 40, 40])], 2)
    truth[kind] = copy.deepcopy(truth[kind])
    truth[kind][0] |= changes
    with pytest.raises(DataError, match=expected):
        CocoMetric(truth)


def test_an_image_that_the_annotations_lack_is_refused():
    metric = CocoMetric(content([annotation(1, 1, 7, [10, 10, 40, 40])], 1))
    with pytest.raises(InputError, match=r"the image id '1' is not among those of the annotations, e\.g\. 1;"):
        metric.update([detections([], [], [])], ["1"])
    metric.update([detections([[10, 10, 40, 40]], [1], [0.9])], torch.tensor([1]))
    assert summary(metric.compute())["box_ap"] == pytest.approx(100)
