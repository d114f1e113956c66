"""The figures are those of pycocotools, and mean what they say on cases that can be worked out by hand."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
import torch

from focalnet.metrics.coco import CocoMetric, coco_results, summary
from focalnet.structures import Detections

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


def test_results_are_in_cocos_form():
    from pycocotools import mask

    found = detections([[10, 20, 30, 40]], [2], [0.5])
    (one,) = json.loads(json.dumps(coco_results(found, 12, [3, 7, 90])))
    assert (one["image_id"], one["category_id"], one["bbox"], one["score"]) == (12, 90, [10, 20, 30, 40], 0.5)
    assert mask.area(one["segmentation"]) == 1200
    assert "segmentation" not in coco_results(Detections(found.boxes, found.scores, found.labels), 1, [1, 2, 3])[0]
