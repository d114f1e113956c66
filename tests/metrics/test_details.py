"""Metrics by class, calibration and tables of predictions, compared with scikit-learn and torchmetrics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from focalnet.card import Preprocessing
from focalnet.metrics.classification import ClassificationEvaluator, calibration_error
from focalnet.metrics.panoptic import PanopticEvaluator
from focalnet.metrics.semantic import SemanticEvaluator
from focalnet.results import Classification, PanopticMap, Segment, SemanticMap
from focalnet.samples import Batch, ImageInfo, LabelMapTarget, PanopticTarget

NAMES = ("ant", "bee", "cat", "dog")


def data(names: tuple[str, ...] = NAMES, **more: Any) -> Any:
    return SimpleNamespace(class_names=names, preprocessing=Preprocessing(), **more)


def batch(targets: Any, count: int) -> Batch[Any]:
    infos = [ImageInfo(f"{i}.jpg", (2, 2)) for i in range(count)]
    return Batch(torch.zeros(count, 3, 2, 2), [(2, 2)] * count, targets, infos)


def classified(logits: torch.Tensor, targets: torch.Tensor) -> ClassificationEvaluator:
    evaluator = ClassificationEvaluator(data())
    evaluator.rows = []
    for some, of in zip(logits.split(30), targets.split(30), strict=True):
        results = [Classification((), (), (), logits=one) for one in some]
        evaluator.update(results, batch(of, len(of)))
    return evaluator


@pytest.fixture
def random() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(100, 4, generator=generator)
    logits[:, 2] -= 100  # a class that is never predicted
    return logits, torch.randint(0, 3, (100,), generator=generator)  # and one that no image has


def test_classification_agrees_with_scikit_learn(random):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, targets = random
    details = classified(logits, targets).details()
    predicted = logits.argmax(1)
    assert details["macro_f1"] == pytest.approx(100 * metrics.f1_score(targets, predicted, average="macro"), abs=1e-4)
    recalls = metrics.recall_score(targets, predicted, labels=[0, 1, 2], average=None)
    assert details["balanced_accuracy"] == pytest.approx(100 * recalls.mean(), abs=1e-4)
    assert [one["name"] for one in details["per_class"]] == list(NAMES)
    assert [one["accuracy"] for one in details["per_class"][:3]] == pytest.approx(100 * recalls, abs=1e-4)
    assert details["per_class"][3]["accuracy"] is None
    assert details["per_class"][2]["precision"] is None
    assert details["per_class"][2]["f1"] == 0
    matrix = details["confusion_matrix"]
    assert matrix["counts"] == metrics.confusion_matrix(targets, predicted, labels=range(4)).tolist()
    assert matrix["rows"] == matrix["columns"] == list(NAMES)


def test_the_calibration_error_agrees_with_torchmetrics(random):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, targets = random
    expected = functional.multiclass_calibration_error(logits.softmax(1), targets, 4, n_bins=15, norm="l1")
    assert classified(logits, targets).details()["calibration_error"] == pytest.approx(100 * float(expected), abs=1e-3)


def test_the_calibration_error_by_hand():
    scores = torch.tensor([1.0, 1.0, 0.5, 0.45, 0.1])
    correct = torch.tensor([True, False, True, False, False])
    # With two bins: 0.5 is in the lower one, with accuracy 1/3 and mean score 0.35; above, 1/2 and 1.
    assert calibration_error(scores, correct, bins=2) == pytest.approx(100 * (3 / 5 * (0.35 - 1 / 3) + 2 / 5 * 0.5))
    assert calibration_error(torch.ones(3), torch.ones(3, dtype=torch.bool)) == 0


def test_the_table_of_a_classification(random):
    logits, targets = random
    rows = classified(logits, targets).rows
    assert rows is not None
    assert len(rows) == 100
    assert [row["predicted"] for row in rows] == logits.argmax(1).tolist()
    scores = logits.softmax(1)
    assert rows[7] == {
        "path": "7.jpg", "target": int(targets[7]), "target_name": NAMES[targets[7]],
        "predicted": int(scores[7].argmax()), "predicted_name": NAMES[scores[7].argmax()],
        "score": pytest.approx(float(scores[7].max())), "target_score": pytest.approx(float(scores[7, targets[7]])),
        "correct": bool(targets[7] == scores[7].argmax()),
    }  # fmt: skip


def test_semantic_details():
    evaluator = SemanticEvaluator(data(("sea", "sky", "fog")))
    evaluator.rows = []
    target = torch.tensor([[0, 0], [1, 255]])
    evaluator.update([SemanticMap(torch.tensor([[0, 1], [1, 1]]))], batch([LabelMapTarget(target)], 1))
    details = evaluator.details()
    assert details["per_class"] == [
        {"name": "sea", "pixels": 2, "iou": 50, "accuracy": 50},
        {"name": "sky", "pixels": 1, "iou": 50, "accuracy": 100},
        {"name": "fog", "pixels": 0, "iou": None, "accuracy": None},
    ]
    assert details["confusion_matrix"]["counts"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert evaluator.rows == [
        {"path": "0.jpg", "labeled_pixels": 3, "miou": 50, "pixel_accuracy": 66.666667, "mean_accuracy": 75}
    ]


def test_panoptic_details():
    evaluator = PanopticEvaluator(data(("car", "sky", "sea"), num_things=1))
    evaluator.rows = []
    ids = torch.tensor([[1, 1], [2, 2]], dtype=torch.int32)
    target = PanopticTarget(ids, torch.tensor([0, 1]), torch.tensor([False, False]))
    result = PanopticMap(ids, (Segment(1, 0, True, 0.9, 2), Segment(2, 2, False, 0.9, 2)))
    evaluator.update([result], batch([target], 1))
    car, sky, sea = evaluator.details()["per_class"]
    assert car == {
        **{"name": "car", "is_thing": True, "matched": 1, "false_positives": 0, "missed": 0},
        **{"pq": 100, "sq": 100, "rq": 100},
    }
    assert (sky["missed"], sea["false_positives"], sky["pq"]) == (1, 1, 0)
    assert evaluator.rows == [{"path": "0.jpg", "pq": 50, "matched": 1, "false_positives": 1, "missed": 1}]
    assert np.isfinite(evaluator.compute()[0].value)
