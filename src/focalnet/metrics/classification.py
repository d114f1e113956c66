"""Top-1 and top-5 accuracy, the confusion matrix, and the most confident correct and wrong predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from focalnet.metrics.base import Bar, ConfusionMatrix, Data, Evaluator, Example, Metric, Section, Table, gather_objects
from focalnet.metrics.confusion import count_pairs
from focalnet.results import Classification
from focalnet.samples import Batch

MOST_CLASSES = 200  # with more classes, confusion matrix and table are unreadable


class ClassificationEvaluator(Evaluator):
    """Top-1 and top-5 accuracy.

    ``best`` are the most confident correct predictions, ``worst`` the wrong ones with the lowest target scores.

    Args:
        data: where the batches come from.
        examples: keep the best and the worst images, which only ``report`` needs.

    Attributes:
        batches: for each batch, labels ``(B,)`` and the classes with the highest scores ``(B, <= 5)``, best first.
    """

    num_examples: ClassVar[int] = 12

    def __init__(self, data: Data, *, examples: bool = False) -> None:
        super().__init__(data, examples=examples)
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.num_classes = len(self.class_names)

    def update(self, results: Sequence[Classification], batch: Batch[int]) -> None:
        super().update(results, batch)
        logits, labels = stacked_logits(results), batch.targets
        self.num_classes = logits.shape[1]
        ranked = logits.topk(min(5, self.num_classes)).indices.cpu()
        self.batches.append((labels.cpu(), ranked))
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
        labels, ranked = self._all()
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
            labels, ranked = self._all()
            matrix = count_pairs(labels, ranked[:, 0], (self.num_classes,) * 2)
            chart = ConfusionMatrix(matrix.numpy(), self._names, self._names)
            sections.append(Section("Confusion matrix", charts=[chart]))
            sections.append(Section("Accuracy by class", tables=[_by_class(matrix, self._names)]))
        return sections + self.example_sections("Most confident correct predictions", "Worst mistakes")

    def _all(self) -> tuple[Tensor, Tensor]:
        labels, ranked = zip(*self.batches, strict=True)
        return torch.cat(labels), torch.cat(ranked)


def stacked_logits(results: Sequence[Classification]) -> Tensor:
    """``(B, num_classes)``, float32."""
    return torch.stack([result.logits for result in results if result.logits is not None]).float()


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
