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

IMBALANCED = 10  # the largest class has so many times as many images as the smallest
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
            sections.append(_balance(matrix, self._names))
            sections.append(Section("Accuracy by class", tables=[_by_class(matrix, self._names)]))
        return sections + self.example_sections("Most confident correct predictions", "Worst mistakes")

    def _all(self) -> tuple[Tensor, Tensor]:
        labels, ranked = zip(*self.batches, strict=True)
        return torch.cat(labels), torch.cat(ranked)


def stacked_logits(results: Sequence[Classification]) -> Tensor:
    """``(B, num_classes)``, float32."""
    return torch.stack([result.logits for result in results if result.logits is not None]).float()


def _balance(matrix: Tensor, names: Sequence[str]) -> Section:
    """How many images each class has, and how often it is predicted; warns of a model that knows one class only."""
    images, predicted = matrix.sum(1), matrix.sum(0)
    present, total = images[images > 0], int(images.sum())
    warning = text = ""
    if (predicted > 0).sum() == 1 and len(present) > 1:
        only = names[int(predicted.argmax())]
        warning = f'Every image is predicted to be of class "{only}": the model has learned nothing else.'
    if (ratio := int(present.max()) / int(present.min())) >= IMBALANCED:
        text = (
            f"The classes are imbalanced: the largest has {ratio:.0f} times as many images as the smallest. "
            "Accuracy says little of small classes; model.class_weights and data.sampling can balance training."
        )
    order = images.argsort(descending=True, stable=True).tolist()
    counts = [[cell for n in (int(images[i]), int(predicted[i])) for cell in (str(n), Bar(n / total))] for i in order]
    rows = [(names[i], *cells) for i, cells in zip(order, counts, strict=True)]
    return Section("Images by class", text, [Table(rows, ("class", "images", "", "predicted", ""))], warning=warning)


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
