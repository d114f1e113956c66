"""Top-1 and top-5 accuracy, F1, calibration, confusions, and the most confident correct and wrong predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from focalnet.metrics.balance import balance_section
from focalnet.metrics.base import (
    Bar,
    ConfusionMatrix,
    Data,
    Evaluator,
    Example,
    Metric,
    Section,
    Table,
    gather_objects,
    rounded,
)
from focalnet.metrics.confusion import count_pairs
from focalnet.results import Classification, MultiLabel
from focalnet.samples import Batch

MOST_CLASSES = 200  # with more classes, confusion matrix and table are unreadable
BINS = 15  # of the calibration error, as in its paper


class ClassificationEvaluator(Evaluator):
    """Top-1 and top-5 accuracy.

    ``best`` are the most confident correct predictions, ``worst`` the wrong ones with the lowest target scores.

    Args:
        data: where the batches come from.
        examples: keep the best and the worst images, which only ``report`` needs.

    Attributes:
        batches: for each batch, labels ``(B,)``, the classes with the highest scores ``(B, <= 5)``, best first, and the
            highest score ``(B,)``.
    """

    num_examples: ClassVar[int] = 12

    def __init__(self, data: Data, *, examples: bool = False) -> None:
        super().__init__(data, examples=examples)
        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self.num_classes = len(self.class_names)

    def update(self, results: Sequence[Classification], batch: Batch[int]) -> None:
        super().update(results, batch)
        logits, labels = stacked_logits(results), batch.targets
        self.num_classes = logits.shape[1]
        ranked = logits.topk(min(5, self.num_classes)).indices.cpu()
        self.batches.append((labels.cpu(), ranked, logits.softmax(1).amax(1).cpu()))
        if self.examples:
            self._names = self.class_names or tuple(str(i) for i in range(self.num_classes))
            scores = logits.softmax(1).gather(1, labels[:, None])[:, 0].tolist()
            for i, score in enumerate(scores):
                self._keep(results[i], batch, i, score, int(ranked[i, 0]))

    def _keep(self, result: Classification, batch: Batch[int], i: int, score: float, predicted: int) -> None:
        label = int(batch.targets[i])
        correct = label == predicted

        def make() -> Example:
            mistake = "" if correct else f"\npredicted {self._names[predicted]}"
            title = f"{self._names[label]}{mistake}\n{100 * score:.1f} %"
            return Example(replace(result, image=self.image(batch, i), logits=None), title)

        self.keep(make, good=score if correct else None, bad=None if correct else -score)

    def gather(self) -> None:
        super().gather()
        self.batches = [batch for batches in gather_objects(self.batches) for batch in batches]

    def compute(self) -> list[Metric]:
        """``top1``, and ``top5`` where there are more than 5 classes."""
        labels, ranked, _ = self._all()
        hits = {"top1": ranked[:, 0] == labels}
        if self.num_classes > 5:
            hits["top5"] = (ranked == labels[:, None]).any(1)
        return [
            Metric(name, f"top-{name[-1]}", 100.0 * hit.double().mean().item(), headline=name == "top1", curve=True)
            for name, hit in hits.items()
        ]

    def report(self) -> list[Section]:
        """Confusion matrix, accuracy by class, the most confident correct predictions and the worst mistakes."""
        sections = []
        if self.num_classes <= MOST_CLASSES:
            labels, ranked, _ = self._all()
            matrix = count_pairs(labels, ranked[:, 0], (self.num_classes,) * 2)
            chart = ConfusionMatrix(matrix.numpy(), self._names, self._names)
            sections.append(Section("Confusion matrix", charts=[chart]))
            sections.append(_balance(matrix, self._names))
            sections.append(Section("Accuracy by class", tables=[_by_class(matrix, self._names)]))
        return sections + self.example_sections("Most confident correct predictions", "Worst mistakes")

    def details(self) -> dict[str, Any]:
        """``macro_f1``, ``balanced_accuracy``, ``calibration_error``, ``per_class``, and ``confusion_matrix``.

        The matrix is left out with more than ``MOST_CLASSES`` classes.
        """
        labels, ranked, scores = self._all()
        names = self.class_names or tuple(f"class {i}" for i in range(self.num_classes))
        matrix = count_pairs(labels, ranked[:, 0], (self.num_classes,) * 2)
        recall, precision, f1 = (values.numpy() for values in scores_by_class(matrix))
        per_class = [
            {
                "name": name,
                "images": images,
                "accuracy": rounded(recall[i]),
                "precision": rounded(precision[i]),
                "f1": rounded(f1[i]),
            }
            for i, (name, images) in enumerate(zip(names, matrix.sum(1).tolist(), strict=True))
        ]
        found: dict[str, Any] = {
            "macro_f1": rounded(np.nanmean(f1)),
            "balanced_accuracy": rounded(np.nanmean(recall)),
            "calibration_error": rounded(calibration_error(scores, ranked[:, 0] == labels)),
            "per_class": per_class,
        }
        if self.num_classes <= MOST_CLASSES:
            found["confusion_matrix"] = {"rows": [*names], "columns": [*names], "counts": matrix.tolist()}
        return found

    def table_rows(self, result: Classification, batch: Batch[int], i: int) -> list[dict[str, Any]]:
        """One row: target and predicted class, with their scores from 0 to 1."""
        scores = stacked_logits([result])[0].softmax(0)
        target, predicted = int(batch.targets[i]), int(scores.argmax())
        names = self.class_names or tuple(f"class {i}" for i in range(len(scores)))
        return [
            {
                "target": target,
                "target_name": names[target],
                "predicted": predicted,
                "predicted_name": names[predicted],
                "score": float(scores[predicted]),
                "target_score": float(scores[target]),
                "correct": target == predicted,
            }
        ]

    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        labels, ranked, scores = zip(*self.batches, strict=True)
        return torch.cat(labels), torch.cat(ranked), torch.cat(scores)


def scores_by_class(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Recall, precision and F1 of each class in percent, ``(N,)`` each; their means are those of scikit-learn.

    Recall is NaN without targets, precision without predictions, and F1 without both. The mean recall is the balanced
    accuracy, the mean F1 the macro F1.

    Args:
        matrix: counts by target (rows) and predicted class, ``(N, N)``.
    """
    correct, targets, predictions = matrix.diagonal().double(), matrix.sum(1), matrix.sum(0)
    recall, precision = 100 * correct / targets, 100 * correct / predictions  # 0 / 0 is NaN
    return recall, precision, 200 * correct / (targets + predictions)


def calibration_error(scores: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Expected calibration error in percent (Guo et al., arXiv 1706.04599): how far confidence is from accuracy.

    The highest scores are sorted into bins of equal width, the m-th from (m - 1) / bins, exclusive, to m / bins,
    inclusive; the error is the mean over the images of the difference between accuracy and mean score of their bin.

    Args:
        scores: highest softmax probability of each image, ``(N,)``, 0 to 1.
        correct: whether that class is the target, ``(N,)``, bool.
        bins: number of bins.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    bin_of = torch.bucketize(scores.double(), edges)  # edges[i - 1] < score <= edges[i]
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, correct.double() - scores.double())
    return float(100 * gaps.abs().sum() / len(scores))


def stacked_logits(results: Sequence[Classification | MultiLabel]) -> Tensor:
    """``(B, num_classes)``, float32."""
    return torch.stack([result.logits for result in results if result.logits is not None]).float()


def _balance(matrix: Tensor, names: Sequence[str]) -> Section:
    """How many images each class has, and how often it is predicted; warns of a model that knows one class only."""
    images, predicted = matrix.sum(1).numpy(), matrix.sum(0).numpy()
    warning = ""
    if (predicted > 0).sum() == 1 and (images > 0).sum() > 1:
        only = names[int(predicted.argmax())]
        warning = f'Every image is predicted to be of class "{only}": the model has learned nothing else.'
    advice = "Accuracy says little of small classes; model.class_weights and data.sampling can balance training."
    return balance_section(names, images, predicted, what="images", advice=advice, warning=warning)


def _by_class(matrix: Tensor, names: Sequence[str]) -> Table:
    """Lowest accuracy first, with the class that is most often predicted instead."""
    lines = []
    for i, name in enumerate(names):
        images, correct = int(matrix[i].sum()), int(matrix[i, i])
        others = matrix[i].clone()
        others[i] = 0
        confused = names[int(others.argmax())] if others.any() else ""
        lines.append((correct / images if images else 0.0, name, images, confused))
    rows = [
        (name, f"{100 * share:.1f} %", Bar(share), str(images), confused)
        for share, name, images, confused in sorted(lines)
        if images
    ]
    return Table(rows, ("class", "accuracy", "", "images", "most frequent mistake"))
