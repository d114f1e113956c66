"""Mean average precision and F1 of images that can have several classes, with the classes that are learned worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import require
from focalnet.metrics.balance import balance_section
from focalnet.metrics.base import (
    Bar,
    Data,
    Evaluator,
    Example,
    Metric,
    Section,
    Table,
    gather_objects,
    rounded,
)
from focalnet.metrics.classification import stacked_logits
from focalnet.results import MultiLabel
from focalnet.results.base import class_name
from focalnet.results.classification import THRESHOLD
from focalnet.samples import Batch


class MultiLabelEvaluator(Evaluator):
    """Average precision of each class, and F1 of the classes with a score of at least ``THRESHOLD``.

    ``best`` are the images with the lowest binary cross entropy among those that have a class, ``worst`` those with the
    highest.

    Args:
        data: where the batches come from.
        examples: keep the best and the worst images, which only ``report`` needs.

    Attributes:
        batches: for each batch, whether the images have each class ``(B, N)``, bool, and the scores ``(B, N)``.
    """

    num_examples: ClassVar[int] = 12

    def __init__(self, data: Data, *, examples: bool = False) -> None:
        super().__init__(data, examples=examples)
        self.batches: list[tuple[Tensor, Tensor]] = []

    def update(self, results: Sequence[MultiLabel], batch: Batch[Tensor]) -> None:
        super().update(results, batch)
        logits, targets = stacked_logits(results).cpu(), batch.targets.cpu()
        self.batches.append((targets > 0, logits.sigmoid()))
        if self.examples:
            losses = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1).tolist()
            for i, (result, loss) in enumerate(zip(results, losses, strict=True)):
                self._keep(result, batch, i, loss)

    def _keep(self, result: MultiLabel, batch: Batch[Tensor], i: int, loss: float) -> None:
        targets = {label for label, value in enumerate(batch.targets[i].tolist()) if value > 0}
        missed, wrong = targets - set(result.labels), set(result.labels) - targets

        def make() -> Example:
            lines = [f"targets: {self._list(targets)}"]
            lines += [f"missed: {self._list(missed)}"] if missed else []
            lines += [f"wrong: {self._list(wrong)}"] if wrong else []
            return Example(replace(result, image=self.image(batch, i), logits=None), "\n".join(lines))

        correct = not missed and not wrong
        self.keep(make, good=-loss if correct and targets else None, bad=None if correct else loss)

    def _list(self, labels: set[int]) -> str:
        return ", ".join(class_name(self.class_names, label) for label in sorted(labels)) or "none"

    def gather(self) -> None:
        super().gather()
        self.batches = [batch for batches in gather_objects(self.batches) for batch in batches]

    def compute(self) -> list[Metric]:
        """``map`` over the classes that any image has, ``f1_micro`` and ``f1_macro``; except undefined ones."""
        counts = self._counts()
        values = {
            "map": ("mAP", _mean(self._average_precision())),
            "f1_micro": ("micro F1", float(_f1(*(count.sum(keepdims=True) for count in counts))[0])),
            "f1_macro": ("macro F1", _mean(_f1(*counts))),
        }
        return [
            Metric(name, title, value, headline=name == "map", curve=True)
            for name, (title, value) in values.items()
            if not np.isnan(value)
        ]

    def details(self) -> dict[str, Any]:
        """``threshold``, and ``per_class`` with the counts of images, AP, precision, recall and F1."""
        both, targets, predicted = self._counts()
        with np.errstate(invalid="ignore"):
            precision, recall = 100 * both / predicted, 100 * both / targets
        values = zip(self._average_precision(), precision, recall, _f1(both, targets, predicted), strict=True)
        per_class = [
            {
                "name": class_name(self.class_names, label),
                "images": int(targets[label]),
                "predicted": int(predicted[label]),
                **{name: rounded(value) for name, value in zip(("ap", "precision", "recall", "f1"), row, strict=True)},
            }
            for label, row in enumerate(values)
        ]
        return {"threshold": THRESHOLD, "per_class": per_class}

    def table_rows(self, result: MultiLabel, batch: Batch[Tensor], i: int) -> list[dict[str, Any]]:
        """One row: targets and predicted classes, separated by ``|``, and the score of each class from 0 to 1."""
        scores = stacked_logits([result])[0].sigmoid().tolist()
        targets = [label for label, value in enumerate(batch.targets[i].tolist()) if value > 0]
        predicted = [label for label, score in enumerate(scores) if score >= THRESHOLD]
        names = [class_name(self.class_names, label) for label in range(len(scores))]
        return [
            {
                "targets": "|".join(names[label] for label in targets),
                "predicted": "|".join(names[label] for label in predicted),
                "correct": targets == predicted,
                **{f"score {name}": score for name, score in zip(names, scores, strict=True)},
            }
        ]

    def report(self) -> list[Section]:
        """The classes with their metrics, how often each occurs and is predicted, the best and the worst images."""
        _, targets, predicted = self._counts()
        names = [class_name(self.class_names, label) for label in range(len(targets))]
        ap, f1 = self._average_precision(), _f1(*self._counts())
        order = np.argsort(np.where(np.isnan(ap), np.inf, ap), kind="stable").tolist()
        rows = [
            (names[i], _percent(ap[i]), Bar(0.0 if np.isnan(ap[i]) else ap[i] / 100), _percent(f1[i]), str(targets[i]))
            for i in order
        ]
        table = Table(rows, ("class", "AP", "", "F1", "images"))
        note = f"F1 is of classes with a score of at least {THRESHOLD}."
        return [
            self._balance(names, targets, predicted),
            Section("Average precision by class", note, [table]),
            *self.example_sections("Best predictions", "Worst mistakes"),
        ]

    def _balance(self, names: list[str], targets: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> Section:
        """How many images have each class, and how many are predicted to; warns where all predictions are alike."""
        of_targets, of_scores = self._all()
        sets = np.unique(of_scores >= THRESHOLD, axis=0)
        warning = ""
        if len(sets) == 1 and len(np.unique(of_targets, axis=0)) > 1:
            same = ", ".join(f'"{names[label]}"' for label in np.flatnonzero(sets[0])) or "none"
            warning = f"The same classes are predicted in every image ({same}): the model has learned nothing else yet."
        advice = "model.class_weights can balance training."
        return balance_section(names, targets, predicted, what="images", advice=advice, warning=warning)

    def _all(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        targets, scores = (torch.cat(parts).numpy() for parts in zip(*self.batches, strict=True))
        return targets, scores

    def _counts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Images of each class that are predicted correctly, that have it, and that are predicted to: ``(N,)`` each."""
        targets, scores = self._all()
        predicted = scores >= THRESHOLD
        return (targets & predicted).sum(0), targets.sum(0), predicted.sum(0)

    def _average_precision(self) -> npt.NDArray[np.float64]:
        """Of each class in percent, ``(N,)``, by scikit-learn; NaN where no image has the class."""
        average_precision = require("sklearn.metrics", "train").average_precision_score
        pairs = zip(*(values.T for values in self._all()), strict=True)
        return np.array([100 * average_precision(*pair) if pair[0].any() else np.nan for pair in pairs])


def _f1(
    both: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """F1 in percent; NaN where a class is neither target nor predicted."""
    with np.errstate(invalid="ignore"):
        values: npt.NDArray[np.float64] = 200 * both / (targets + predicted)
    return values


def _mean(values: npt.NDArray[np.float64]) -> float:
    """The mean of the defined values; NaN without any."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _percent(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.1f} %"
