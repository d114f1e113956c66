"""Panoptic quality as Kirillov et al. define it (arXiv 1801.00868), with the rules of panopticapi for void and crowds.

A predicted and a target segment of the same class match if their IoU is above 0.5; each has at most one match.
PQ = sum of the IoUs of matches / (matches + half of the unmatched segments of both kinds) = SQ x RQ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from focalnet.errors import InputError
from focalnet.metrics.balance import balance_section
from focalnet.metrics.base import (
    Bar,
    Evaluator,
    Example,
    Metric,
    Section,
    Table,
    format_value,
    gather_objects,
    rounded,
)
from focalnet.results import PanopticMap, Segment
from focalnet.samples import Batch, PanopticTarget
from focalnet.visualize import palettes

MIN_IOU = 0.5  # of a match, exclusive
MAX_IGNORED_SHARE = 0.5  # a predicted segment with a larger share on void and crowds is not a mistake


@dataclass(frozen=True)
class PanopticResult:
    """PQ, SQ and RQ; all values in percent, NaN where there are neither targets nor predictions.

    Args:
        stats: ``pq``, ``sq`` and ``rq``, means over classes; ``pq_things``, ..., ``pq_stuff``, ... of things or stuff.
        by_class: ``pq``, ``sq``, ``rq`` by class name.
    """

    stats: dict[str, float]
    by_class: dict[str, dict[str, float]]

    def summary(self) -> dict[str, float]:
        """``stats`` without undefined values."""
        return {name: value for name, value in self.stats.items() if not math.isnan(value)}


class PanopticQuality:
    """Counts matches image by image.

    Args:
        class_names: by label.
        num_things: this many of the first classes are things, the others stuff.
    """

    def __init__(self, class_names: Sequence[str], num_things: int) -> None:
        self.class_names, self.num_things = tuple(class_names), num_things
        #: By class: sum of IoUs, matches, unmatched predictions, unmatched targets.
        self.counts = torch.zeros(len(class_names), 4, dtype=torch.float64)

    def update(self, predictions: Iterable[PanopticMap], targets: Iterable[PanopticTarget]) -> None:
        """Adds images; predictions and targets have the same size.

        Raises:
            InputError: sizes differ, a map has pixels of segments that it does not list, or ids are invalid: those of
                predictions must be above 0 and unique, those of targets must count from 1.
        """
        for prediction, target in zip(predictions, targets, strict=True):
            self.counts += self.count(prediction, target)

    def count(self, prediction: PanopticMap, target: PanopticTarget) -> Tensor:
        """Counts one image in the form of ``counts``, ``(classes, 4)``."""
        labels, crowds = target.labels.cpu(), target.crowds.cpu()
        predicted_labels = torch.tensor([segment.label for segment in prediction.segments], dtype=torch.int64)
        ids = target.ids.cpu()
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) <= len(labels):
            raise InputError(
                f"the targets of {prediction.path or 'an image'} have ids from {ids.min()} to {ids.max()}, but "
                f"{len(labels)} segments: ids count from 1, and 0 is void"
            )
        overlap = _overlaps(ids, _numbered(prediction), 1 + len(labels), 1 + len(predicted_labels))
        areas, target_areas = overlap.sum(0)[1:], overlap.sum(1)[1:]
        void, overlap = overlap[0, 1:], overlap[1:, 1:]

        ious = overlap.double() / (target_areas[:, None] + (areas - void) - overlap).clamp(min=1)
        same_class = labels[:, None] == predicted_labels
        matched = (ious > MIN_IOU) & same_class & ~crowds[:, None]
        on_crowds = overlap * (same_class & _counting_crowds(labels, crowds)[:, None])
        ignored = void + on_crowds.sum(0)
        false_positives = ~matched.any(0) & (areas > 0) & (ignored <= MAX_IGNORED_SHARE * areas)
        missed = ~matched.any(1) & ~crowds

        counts = torch.zeros_like(self.counts)
        rows = matched.nonzero()[:, 0]
        counts[:, 0].index_add_(0, labels[rows], ious[matched])
        for column, classes in ((1, labels[rows]), (2, predicted_labels[false_positives]), (3, labels[missed])):
            counts[:, column] = torch.bincount(classes, minlength=len(counts))
        return counts

    def gather(self) -> None:
        """Combines the counts of all processes, so that each computes the same metrics."""
        self.counts = torch.stack(gather_objects(self.counts)).sum(0)

    def compute(self) -> PanopticResult:
        """The metrics of everything added so far."""
        ious, matches, false_positives, missed = self.counts.unbind(1)
        recognition = 100 * matches / (matches + 0.5 * false_positives + 0.5 * missed)  # NaN if all are 0
        segmentation = (100 * ious / matches.clamp(min=1)).where(recognition.isfinite(), torch.nan)
        qualities = {"pq": segmentation * recognition / 100, "sq": segmentation, "rq": recognition}
        groups = {"": slice(None), "_things": slice(None, self.num_things), "_stuff": slice(self.num_things, None)}
        stats = {
            name + group: values[labels].nanmean().item()
            for group, labels in groups.items()
            for name, values in qualities.items()
        }
        by_class = {
            title: {name: values[label].item() for name, values in qualities.items()}
            for label, title in enumerate(self.class_names)
        }
        return PanopticResult(stats, by_class)


def _numbered(prediction: PanopticMap) -> Tensor:
    """The id map with segments numbered from 1 in their order, ``(H, W)``, int64."""
    ids = prediction.ids.cpu().long()
    segment_ids = [segment.id for segment in prediction.segments]
    if min(segment_ids, default=1) < 1 or len(set(segment_ids)) < len(segment_ids):
        wrong = min(segment_ids) if min(segment_ids) < 1 else max(segment_ids, key=segment_ids.count)
        raise InputError(
            f"the panoptic map of {prediction.path or 'an image'} has "
            + (f"two segments with the id {wrong}" if wrong > 0 else f"a segment with the id {wrong}, but 0 is void")
            + "; number its segments from 1"
        )
    known, order = torch.tensor([0, *segment_ids]).sort()
    index = torch.bucketize(ids, known).clamp(max=len(known) - 1)
    if not torch.equal(known[index], ids):
        raise InputError(
            f"the panoptic map of {prediction.path or 'an image'} has pixels of segments that it does not list"
        )
    return order[index]


def _overlaps(targets_HW: Tensor, predictions_HW: Tensor, rows: int, columns: int) -> Tensor:
    """Shared pixels of target and predicted segments, ``(rows, columns)``; the first row and column are void."""
    if targets_HW.shape != predictions_HW.shape:
        sizes = " and ".join(" x ".join(map(str, ids.shape)) for ids in (predictions_HW, targets_HW))
        raise InputError(f"a panoptic map and its target have {sizes} pixels, which must be the same")
    pairs = targets_HW.long() * columns + predictions_HW
    return torch.bincount(pairs.flatten(), minlength=rows * columns).reshape(rows, columns)


def _counting_crowds(labels: Tensor, crowds: Tensor) -> Tensor:
    """Which crowds make predictions on them count as ignored: the last one of each class, as in panopticapi."""
    last = {int(labels[i]): int(i) for i in crowds.nonzero()[:, 0]}
    counting = torch.zeros_like(crowds)
    counting[list(last.values())] = True
    return counting


class PanopticEvaluator(Evaluator):
    """Panoptic quality. ``best`` and ``worst`` are ranked by the PQ of an image over all classes.

    Args:
        data: where the batches come from; it must have ``num_things``.
        examples: keep the best and the worst images, which only ``report`` needs.
    """

    def __init__(self, data: Any, *, examples: bool = False) -> None:
        super().__init__(data, examples=examples)
        self.metric = PanopticQuality(self.class_names, data.num_things)

    def update(self, results: Sequence[PanopticMap], batch: Batch[PanopticTarget]) -> None:
        super().update(results, batch)
        for i, (result, target) in enumerate(zip(results, batch.targets, strict=True)):
            counts = self.metric.count(result, target)
            self.metric.counts += counts
            if self.examples:
                self._keep(result, batch, i, counts)

    def _keep(self, result: PanopticMap, batch: Batch[PanopticTarget], i: int, counts: Tensor) -> None:
        ious, matches, false_positives, missed = counts.sum(0).tolist()
        if not matches + false_positives + missed:
            return
        pq = 100 * ious / (matches + 0.5 * false_positives + 0.5 * missed)

        def make() -> Example:
            image = self.image(batch, i)
            prediction = replace(result, ids=result.ids.cpu(), names=self.class_names, image=image)
            target = replace(self._target(batch.targets[i]), image=image)
            title = f"{len(prediction.segments)} predicted, PQ {pq:.1f} %"
            legend = {"legend": False}
            return Example(prediction, title, target, f"{len(target.segments)} annotated", legend, legend)

        self.keep(make, good=pq, bad=-pq)

    def _target(self, target: PanopticTarget) -> PanopticMap:
        ids = target.ids.cpu()
        areas = torch.bincount(ids.flatten(), minlength=len(target.labels) + 1)[1:].tolist()
        segments = (
            Segment(number, label, label < self.metric.num_things, 1.0, area)
            for number, (label, area) in enumerate(zip(target.labels.tolist(), areas, strict=True), start=1)
        )
        return PanopticMap(ids, tuple(segments), self.class_names)

    def gather(self) -> None:
        super().gather()
        self.metric.gather()

    def compute(self) -> list[Metric]:
        """``pq``, ``sq``, ``rq``, ``pq_things``, ... in percent."""
        return panoptic_metrics(self.metric.compute())

    def details(self) -> dict[str, Any]:
        """``per_class``: PQ, SQ and RQ, with the numbers of segments that match, are wrong and are missed."""
        result, counts = self.metric.compute(), self.metric.counts[:, 1:].long().tolist()
        per_class = [
            {
                "name": name,
                "is_thing": label < self.metric.num_things,
                **dict(zip(("matched", "false_positives", "missed"), counts[label], strict=True)),
                **{key: rounded(value) for key, value in result.by_class[name].items()},
            }
            for label, name in enumerate(self.class_names)
        ]
        return {"per_class": per_class}

    def table_rows(self, result: PanopticMap, batch: Batch[PanopticTarget], i: int) -> list[dict[str, Any]]:
        """One row: PQ of the image alone over all classes, percent, and the numbers of segments."""
        ious, matches, false_positives, missed = self.metric.count(result, batch.targets[i]).sum(0).tolist()
        whole = matches + 0.5 * false_positives + 0.5 * missed
        return [
            {
                "pq": rounded(100 * ious / whole) if whole else None,
                "matched": int(matches),
                "false_positives": int(false_positives),
                "missed": int(missed),
            }
        ]

    def report(self) -> list[Section]:
        """PQ, SQ and RQ, also by class, and the images with the highest and the lowest PQ."""
        result = self.metric.compute()
        matched, wrong, missed = self.metric.counts[:, 1:].long().numpy().T
        sections = [
            Section("Panoptic quality", tables=[quality_table(result)]),
            Section("By class", tables=[_by_class(result)]),
            balance_section(self.class_names, matched + missed, matched + wrong, what="segments"),
        ]
        what = "images: targets and predictions"
        names = self.class_names
        legend = [
            (palettes.of_map(i, names), names[i]) for i, segments in enumerate(matched + wrong + missed) if segments
        ]
        return sections + self.example_sections(f"Best {what}", f"Worst {what}", legend)


def panoptic_metrics(result: PanopticResult) -> list[Metric]:
    """The defined metrics of all classes, things and stuff."""
    metrics = []
    for name, value in result.summary().items():
        quality, _, group = name.partition("_")
        metrics.append(
            Metric(
                name,
                f"{quality.upper()} of {group}" if group else quality.upper(),
                value,
                headline=name == "pq",
                summary=not group,
                per_epoch=not group or quality == "pq",
                curve=name == "rq",
            )
        )
    return metrics


def quality_table(result: PanopticResult) -> Table:
    """A row for each group of classes, a column for each metric."""
    groups = {"": "all classes", "_things": "things", "_stuff": "stuff"}
    rows = [
        (title, *(format_value(result.stats[name + group]) for name in ("pq", "sq", "rq")))
        for group, title in groups.items()
    ]
    return Table(rows, ("", "PQ, %", "SQ, %", "RQ, %"))


def _by_class(result: PanopticResult) -> Table:
    """Lowest PQ first; classes in neither targets nor predictions are left out."""
    present = {name: values for name, values in result.by_class.items() if not math.isnan(values["pq"])}
    rows: list[tuple[str | Bar, ...]] = [
        (name, *(f"{values[key]:.2f}" for key in ("pq", "sq", "rq")), Bar(values["pq"] / 100))
        for name, values in sorted(present.items(), key=lambda item: item[1]["pq"])
    ]
    return Table(rows, ("class", "PQ, %", "SQ, %", "RQ, %", ""))
