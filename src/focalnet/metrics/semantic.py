"""Semantic segmentation metrics: IoU and accuracy, from counts of all pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import ConfigError, InputError
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
    format_value,
    gather_objects,
    rounded,
)
from focalnet.metrics.confusion import count_pairs
from focalnet.results import SemanticMap
from focalnet.samples import IGNORED, Batch, LabelMapTarget, Size
from focalnet.visualize import palettes

MOST_CLASSES = 100  # with more classes, a confusion matrix is unreadable


@dataclass(frozen=True, eq=False)
class SemanticResult:
    """IoU and accuracy of pixels; all values in percent.

    As in mmseg, means leave out undefined values: the IoU of classes in neither targets nor predictions, and the
    accuracy of classes that are not in the targets.

    Args:
        miou: mean over the classes of ``iou``.
        accuracy: share of all labeled pixels.
        mean_accuracy: mean over the classes of ``class_accuracy``.
        iou: by class, NaN where undefined.
        class_accuracy: share of a class's pixels that are predicted correctly, by class, NaN where undefined.
        matrix: pixels by target class and predicted class, ``(N, N + 1)``; the last column is "no class".
    """

    miou: float
    accuracy: float
    mean_accuracy: float
    iou: npt.NDArray[np.float64]
    class_accuracy: npt.NDArray[np.float64]
    matrix: npt.NDArray[np.int64]

    def summary(self) -> dict[str, float]:
        """``miou``, ``pixel_accuracy`` and ``mean_accuracy``."""
        return {"miou": self.miou, "pixel_accuracy": self.accuracy, "mean_accuracy": self.mean_accuracy}


class SemanticMetric:
    """Counts pixels by target and predicted class.

    Args:
        num_classes: number of classes, at most 255, because label 255 is not a class.

    Raises:
        ConfigError: there are more classes.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes > IGNORED:
            raise ConfigError(f"num_classes={num_classes} must be at most {IGNORED}: label {IGNORED} is not a class")
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)

    def update(self, predictions: Iterable[SemanticMap], targets: Iterable[Tensor]) -> None:
        """Adds images; targets are label maps ``(H, W)`` of the same size as the predictions."""
        for result, labels in zip(predictions, targets, strict=True):
            self.matrix += self.count(result.labels, labels)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Counts the pixels of one image, ``(N, N + 1)``.

        Raises:
            InputError: a target is neither a class nor ``IGNORED``, or a prediction is negative.
        """
        labeled = target != IGNORED
        targets, predictions = target[labeled], prediction[labeled].clamp(max=self.num_classes)
        if len(targets) and not (0 <= int(targets.min()) and int(targets.max()) < self.num_classes):
            wrong = targets.min() if targets.min() < 0 else targets.max()
            raise InputError(
                f"a target has the label {int(wrong)}: classes are 0 to {self.num_classes - 1}, ignored is {IGNORED}"
            )
        if len(predictions) and int(predictions.min()) < 0:
            raise InputError(
                f"a prediction has the label {int(predictions.min())}: classes count from 0, no class is {IGNORED}"
            )
        return count_pairs(targets, predictions, (self.num_classes, self.num_classes + 1)).cpu()

    def gather(self) -> None:
        """Combines the counts of all processes, so that each computes the same metrics."""
        self.matrix = torch.stack(gather_objects(self.matrix)).sum(0)

    def compute(self) -> SemanticResult:
        """The metrics of everything added so far."""
        return evaluate(self.matrix.numpy())


def evaluate(matrix: npt.NDArray[np.int64]) -> SemanticResult:
    """The metrics of pixel counts by target and predicted class, ``(N, N + 1)``."""
    correct, targets = matrix.diagonal(), matrix.sum(1)
    union = targets + matrix.sum(0)[:-1] - correct
    iou, by_class = _percentage(correct, union), _percentage(correct, targets)
    return SemanticResult(
        miou=_mean(iou),
        accuracy=float(_percentage(correct.sum(), targets.sum())),
        mean_accuracy=_mean(by_class),
        iou=iou,
        class_accuracy=by_class,
        matrix=matrix,
    )


def _percentage(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """In percent; NaN where ``whole`` is 0."""
    return np.where(whole > 0, 100.0 * part / np.maximum(whole, 1), np.nan)


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


class SemanticEvaluator(Evaluator):
    """IoU and accuracy of pixels. ``best`` and ``worst`` are ranked by mean IoU."""

    def __init__(self, data: Data, *, examples: bool = False) -> None:
        super().__init__(data, examples=examples)
        self.metric = SemanticMetric(len(self.class_names))

    def update(self, results: Sequence[SemanticMap], batch: Batch[LabelMapTarget]) -> None:
        super().update(results, batch)
        for i, (result, target) in enumerate(zip(results, batch.targets, strict=True)):
            counts = self.metric.count(result.labels, target.labels)
            self.metric.matrix += counts
            if self.examples:
                self._keep(result.labels, target.labels, batch, i, evaluate(counts.numpy()).miou)

    def _keep(self, labels: Tensor, targets: Tensor, batch: Batch[LabelMapTarget], i: int, miou: float) -> None:
        def make() -> Example:
            image, size = self.image(batch, i), batch.sizes[i]
            target, prediction = (
                SemanticMap(_resized(one, size), self.class_names, image) for one in (targets, labels)
            )
            title = f"prediction, mIoU {miou:.1f} %"
            return Example(prediction, title, target, "target", {"legend": False}, {"legend": False})

        if miou == miou:  # NaN where nothing is labeled
            self.keep(make, good=miou, bad=-miou)

    def gather(self) -> None:
        super().gather()
        self.metric.gather()

    def compute(self) -> list[Metric]:
        """``miou``, ``pixel_accuracy`` and ``mean_accuracy`` in percent."""
        result = self.metric.compute()
        return [
            Metric("miou", "mIoU", result.miou, headline=True),
            Metric("pixel_accuracy", "pixel accuracy", result.accuracy),
            Metric("mean_accuracy", "mean class accuracy", result.mean_accuracy, curve=True),
        ]

    def details(self) -> dict[str, Any]:
        """``per_class``, and ``confusion_matrix`` in pixels."""
        result = self.metric.compute()
        pixels = result.matrix.sum(1).tolist()
        per_class = [
            {
                "name": name,
                "pixels": pixels[label],
                "iou": rounded(result.iou[label]),
                "accuracy": rounded(result.class_accuracy[label]),
            }
            for label, name in enumerate(self.class_names)
        ]
        names = [*self.class_names]
        matrix = {"rows": names, "columns": [*names, "no class"], "counts": result.matrix.tolist()}
        return {"per_class": per_class, "confusion_matrix": matrix}

    def table_rows(self, result: SemanticMap, batch: Batch[LabelMapTarget], i: int) -> list[dict[str, Any]]:
        """One row: IoU and accuracy of the image alone, percent."""
        counts = self.metric.count(result.labels, batch.targets[i].labels)
        found = evaluate(counts.numpy())
        row = {"labeled_pixels": int(counts.sum())} | {k: rounded(v) for k, v in found.summary().items()}
        return [row]

    def report(self) -> list[Section]:
        """Metrics, IoU by class, confusions, and the images with the highest and the lowest mean IoU."""
        result, names = self.metric.compute(), self.class_names
        metrics = Table([(metric.title, str(metric)) for metric in self.compute()])
        pixels = balance_section(
            names,
            result.matrix.sum(1),
            result.matrix.sum(0)[: len(names)],
            what="pixels",
            advice="Pixel accuracy says little of small classes; mIoU counts all classes alike.",
            as_shares=True,
        )
        by_class = Section("By class", tables=[_by_class(result, names)])
        sections = [Section("Metrics", tables=[metrics]), by_class, pixels]
        if len(names) <= MOST_CLASSES:
            # In thousandths of a class's pixels, because the counts have too many digits to be readable.
            targets = np.maximum(result.matrix.sum(1, keepdims=True), 1)
            share = np.rint(1000 * result.matrix[:, : len(names)] / targets).astype(np.int64)
            chart = ConfusionMatrix(share, names, names)
            sections.append(Section("Confusion matrix, ‰ of the pixels of a class", charts=[chart]))
        what = "images: targets and predictions"
        classes = [i for i, pixels in enumerate(result.matrix.sum(1) + result.matrix.sum(0)[: len(names)]) if pixels]
        legend = [(palettes.of_map(i, names), names[i]) for i in classes]
        return sections + self.example_sections(f"Best {what}", f"Worst {what}", legend)


def _by_class(result: SemanticResult, names: Sequence[str]) -> Table:
    """Lowest IoU first; classes in neither targets nor predictions are left out."""
    pixels = result.matrix.sum(1)
    present = sorted((iou, i) for i, iou in enumerate(result.iou.tolist()) if not np.isnan(iou))
    rows = [
        (
            names[i],
            f"{iou:.2f}",
            Bar(iou / 100),
            format_value(result.class_accuracy[i]),
            f"{100 * pixels[i] / max(pixels.sum(), 1):.2f}",
        )
        for iou, i in present
    ]
    return Table(rows, ("class", "IoU, %", "", "accuracy, %", "share of all pixels, %"))


def _resized(labels_HW: Tensor, size: Size) -> Tensor:
    return F.interpolate(labels_HW.cpu()[None, None].double(), size=size, mode="nearest")[0, 0].long()
