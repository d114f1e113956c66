"""Metrics of images with several classes, compared with scikit-learn and by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from focalnet.card import Preprocessing
from focalnet.metrics.base import Example
from focalnet.metrics.multilabel import MultiLabelEvaluator
from focalnet.models.classifier import likely_classes
from focalnet.samples import Batch, ImageInfo

NAMES = ("ant", "bee", "cat", "dog")


def measured(logits: torch.Tensor, targets: torch.Tensor, *, examples: bool = False) -> MultiLabelEvaluator:
    data: Any = SimpleNamespace(class_names=NAMES[: logits.shape[1]], preprocessing=Preprocessing())
    evaluator = MultiLabelEvaluator(data, examples=examples)
    evaluator.rows = []
    for some, of in zip(logits.split(30), targets.split(30), strict=True):
        infos = [ImageInfo(f"{i}.jpg", (2, 2)) for i in range(len(of))]
        batch = Batch(torch.zeros(len(of), 3, 2, 2), [(2, 2)] * len(of), of, infos)
        evaluator.update(likely_classes(some, data.class_names), batch)
    return evaluator


def values(evaluator: MultiLabelEvaluator) -> dict[str, float]:
    return {metric.name: metric.value for metric in evaluator.compute()}


@pytest.fixture
def random() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(100, 4, generator=generator) < torch.tensor([0.5, 0.2, 0.1, 0.0])).float()
    logits = torch.randn(100, 4, generator=generator) + 2 * targets - 1
    logits[:, 1] = logits[:, 1].round()  # many equal scores
    logits[:, 3] = -5.0  # a class that no image has, and that is never predicted
    return logits, targets


def test_metrics_agree_with_scikit_learn(random):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, targets = random
    evaluator = measured(logits, targets)
    predicted = (logits.sigmoid() >= 0.5).numpy()
    known = targets.numpy()
    ap = 100 * metrics.average_precision_score(known[:, :3], logits[:, :3].sigmoid().numpy(), average=None)
    f1 = {
        average: 100 * metrics.f1_score(known, predicted, average=average, zero_division=np.nan)
        for average in ("micro", "macro")
    }
    assert values(evaluator) == pytest.approx({"map": ap.mean(), "f1_micro": f1["micro"], "f1_macro": f1["macro"]})
    per_class = evaluator.details()["per_class"]
    assert [one["ap"] for one in per_class[:3]] == pytest.approx(ap, abs=1e-5)
    precision, recall, f1_of, images = metrics.precision_recall_fscore_support(known, predicted, zero_division=np.nan)
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1_of)):
        assert [one[name] for one in per_class[:3]] == pytest.approx(100 * expected[:3], abs=1e-5)
        assert per_class[3][name] is None
    assert [one["images"] for one in per_class] == images.tolist()
    assert [one["predicted"] for one in per_class] == predicted.sum(0).tolist()
    assert per_class[3]["ap"] is None
    assert [metric.name for metric in evaluator.compute() if metric.headline] == ["map"]


def test_average_precision_by_hand():
    logits = torch.tensor([[3.0], [2.0], [1.0], [-1.0]])
    targets = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    found = values(measured(logits, targets))
    assert found["map"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert found["f1_micro"] == found["f1_macro"] == pytest.approx(100 * 2 * 2 / (2 + 3))


def test_without_any_class_there_is_no_metric():
    assert values(measured(-torch.ones(3, 2), torch.zeros(3, 2))) == {}


def test_rows_name_targets_predictions_and_scores():
    rows = measured(torch.tensor([[2.0, -2.0], [2.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).rows
    assert rows is not None
    assert [(row["targets"], row["predicted"], row["correct"]) for row in rows] == [
        ("ant", "ant", True),
        ("bee", "ant|bee", False),
    ]
    assert rows[0]["score ant"] == pytest.approx(0.8808, abs=1e-4)


def test_the_report_shows_mistakes_and_warns_of_equal_predictions():
    logits = torch.tensor([[2.0, -2.0], [2.0, -2.0], [2.0, -2.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    sections = {section.title: section for section in measured(logits, targets, examples=True).report()}
    assert 'The same classes are predicted in every image ("ant")' in sections["Images by class"].warning
    titles = [one.title for one in sections["Worst mistakes"].results if isinstance(one, Example)]
    assert titles == ["targets: bee\nmissed: bee\nwrong: ant", "targets: none\nwrong: ant"]
    assert [one.title for one in sections["Best predictions"].results] == ["targets: ant"]
    logits[1, 1] = 2.0
    balance = measured(logits, targets.repeat(1, 1), examples=True).report()[0]
    assert balance.warning == ""


def test_the_report_tells_of_imbalance(random):
    targets = torch.zeros(60, 2)
    targets[:, 0], targets[:5, 1] = 1.0, 1.0
    text = measured(torch.randn(60, 2), targets).report()[0].text
    assert "the largest has 12 times as many images" in text
