"""How well the classes of pixels are found: intersection over union and accuracy, from counts of every pixel."""

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
from focalnet.metrics.base import Bar, ConfusionMatrix, Data, Evaluator, Example, Metric, Section, Table, format_value
from focalnet.metrics.confusion import count_pairs
from focalnet.results import SemanticMap
from focalnet.samples import IGNORED, Batch, LabelMapTarget, Size

MOST_CLASSES = 100  # above, a confusion matrix shows nothing


@dataclass(frozen=True, eq=False)
class SemanticResult:
    """How well pixels were classified; all values in percent.

    Means leave out classes for which there is nothing to divide by, as mmseg's do: IoU that of classes neither there
    nor found, accuracy that of classes not there.

    Args:
        miou: mean over the classes of ``iou``.
        accuracy: share of all labelled pixels.
        mean_accuracy: mean over the classes of ``class_accuracy``.
        iou: by class, NaN where there is nothing to divide by.
        class_accuracy: share of a class's pixels that were found, likewise.
        matrix: pixels by true class and by found class, ``(N, N + 1)``; the last column found no class.
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
    """Counts pixels by true and found class.

    Args:
        num_classes: of the data, at most 255: in the targets, 255 is no class.

    Raises:
        ConfigError: there are more classes.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes > IGNORED:
            raise ConfigError(f"num_classes={num_classes} must be at most {IGNORED}: label {IGNORED} is no class")
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)

    def update(self, found: Iterable[SemanticMap], true: Iterable[Tensor]) -> None:
        """Adds images; ``true`` are their labels ``(H, W)``, at the size of what was found."""
        for result, labels in zip(found, true, strict=True):
            self.matrix += self.count(result.labels, labels)

    def count(self, found: Tensor, true: Tensor) -> Tensor:
        """The pixels of one image, ``(N, N + 1)``.

        Raises:
            InputError: a target is of no class and not ``IGNORED``, or a prediction is negative.
        """
        known = true != IGNORED
        targets, seen = true[known], found[known].clamp(max=self.num_classes)
        if len(targets) and not (0 <= int(targets.min()) and int(targets.max()) < self.num_classes):
            wrong = targets.min() if targets.min() < 0 else targets.max()
            raise InputError(
                f"a target has the label {int(wrong)}: classes are 0 to {self.num_classes - 1}, ignored is {IGNORED}"
            )
        if len(seen) and int(seen.min()) < 0:
            raise InputError(
                f"a prediction has the label {int(seen.min())}: classes count from 0, no class is {IGNORED}"
            )
        return count_pairs(targets, seen, (self.num_classes, self.num_classes + 1)).cpu()

    def gather(self) -> None:
        """Adds what all processes have counted; each then computes the same."""
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.matrix)
        self.matrix = torch.stack(parts).sum(0)

    def compute(self) -> SemanticResult:
        """From everything added so far."""
        return evaluate(self.matrix.numpy())


def evaluate(matrix: npt.NDArray[np.int64]) -> SemanticResult:
    """From pixels by true and found class, ``(N, N + 1)``."""
    right, there = matrix.diagonal(), matrix.sum(1)
    either = there + matrix.sum(0)[:-1] - right
    iou, by_class = _share(right, either), _share(right, there)
    return SemanticResult(
        miou=_mean(iou),
        accuracy=float(_share(right.sum(), there.sum())),
        mean_accuracy=_mean(by_class),
        iou=iou,
        class_accuracy=by_class,
        matrix=matrix,
    )


def _share(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """In percent; NaN of nothing."""
    return np.where(whole > 0, 100.0 * part / np.maximum(whole, 1), np.nan)


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


class SemanticEvaluator(Evaluator):
    """Intersection over union and accuracy of pixels. ``best`` and ``worst`` are ranked by mean IoU."""

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
            title = f"found, mIoU {miou:.1f} %"
            return Example(prediction, title, target, "truth", {"legend": False}, {"legend": False})

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

    def report(self) -> list[Section]:
        """Metrics, IoU by class, confusions, and the images with the highest and the lowest mean IoU."""
        result, names = self.metric.compute(), self.class_names
        metrics = Table([(metric.title, str(metric)) for metric in self.compute()])
        sections = [Section("Figures", tables=[metrics]), Section("By class", tables=[_by_class(result, names)])]
        if len(names) <= MOST_CLASSES:
            # In thousandths of a class's pixels: the counts themselves have too many digits to be read.
            targets = np.maximum(result.matrix.sum(1, keepdims=True), 1)
            share = np.rint(1000 * result.matrix[:, : len(names)] / targets).astype(np.int64)
            chart = ConfusionMatrix(share, names, names)
            sections.append(Section("Confusions, ‰ of the pixels of a class", charts=[chart]))
        what = "pictures: what there is, and what was found"
        return sections + self.example_sections(f"Best {what}", f"Worst {what}")


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
