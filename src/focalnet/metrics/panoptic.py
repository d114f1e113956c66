"""Panoptic quality as Kirillov et al. define it (arXiv 1801.00868), with the rules of panopticapi for void and crowds.

A found segment and a true one of the same class match if their intersection over union is above 0.5; there is at most
one such partner. PQ = sum of those IoUs / (matches + half of what is left over on either side) = SQ x RQ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from focalnet.errors import InputError
from focalnet.metrics.base import Bar, Evaluator, Example, Metric, Section, Table, format_value
from focalnet.results import PanopticMap, Segment
from focalnet.samples import Batch, PanopticTarget

MIN_IOU = 0.5  # of a match, exclusive
MOST_ON_NOTHING = 0.5  # of a found segment, on void and crowd; above, it is no mistake


@dataclass(frozen=True)
class PanopticResult:
    """How well segments were found; all values in percent, NaN where there is nothing to find.

    Args:
        stats: ``pq``, ``sq`` and ``rq``, means over the classes; ``pq_things``, ..., ``pq_stuff``, ... over some.
        by_class: ``pq``, ``sq``, ``rq`` by class name.
    """

    stats: dict[str, float]
    by_class: dict[str, dict[str, float]]

    def summary(self) -> dict[str, float]:
        """``stats`` without those that nothing is measured by."""
        return {name: value for name, value in self.stats.items() if not math.isnan(value)}


class PanopticQuality:
    """Counts matches image by image.

    Args:
        class_names: by label.
        num_things: so many of the first classes are objects, the others stuff.
    """

    def __init__(self, class_names: Sequence[str], num_things: int) -> None:
        self.class_names, self.num_things = tuple(class_names), num_things
        #: By class: sum of IoUs, matches, found without a match, true without a match.
        self.counts = torch.zeros(len(class_names), 4, dtype=torch.float64)

    def update(self, found: Iterable[PanopticMap], truths: Iterable[PanopticTarget]) -> None:
        """Adds some images; maps and truths of the same size.

        Raises:
            InputError: sizes differ, a map has pixels of segments that it does not list, or segments do not count as
                they should: ids of predictions are above 0 and each given once, those of targets from 1.
        """
        for one, truth in zip(found, truths, strict=True):
            self.counts += self.count(one, truth)

    def count(self, found: PanopticMap, truth: PanopticTarget) -> Tensor:
        """What one image adds to ``counts``, ``(classes, 4)``."""
        labels, crowds = truth.labels.cpu(), truth.crowds.cpu()
        seen = torch.tensor([segment.label for segment in found.segments], dtype=torch.int64)
        true_ids = truth.ids.cpu()
        if true_ids.numel() and not 0 <= int(true_ids.min()) <= int(true_ids.max()) <= len(labels):
            raise InputError(
                f"the targets of {found.path or 'an image'} have ids from {true_ids.min()} to {true_ids.max()}, but "
                f"{len(labels)} segments: ids count from 1, and 0 is void"
            )
        shared = _shared_pixels(true_ids, _places(found), 1 + len(labels), 1 + len(seen))
        areas, true_areas = shared.sum(0)[1:], shared.sum(1)[1:]
        void, shared = shared[0, 1:], shared[1:, 1:]

        ious = shared.double() / (true_areas[:, None] + (areas - void) - shared).clamp(min=1)
        matched = (ious > MIN_IOU) & (labels[:, None] == seen) & ~crowds[:, None]
        excused = (labels[:, None] == seen) & _counting_crowds(labels, crowds)[:, None]
        on_nothing = void + (shared * excused).sum(0)
        invented = ~matched.any(0) & (areas > 0) & (on_nothing <= MOST_ON_NOTHING * areas)
        missed = ~matched.any(1) & ~crowds

        counts = torch.zeros_like(self.counts)
        rows = matched.nonzero()[:, 0]
        counts[:, 0].index_add_(0, labels[rows], ious[matched])
        for column, those in ((1, labels[rows]), (2, seen[invented]), (3, labels[missed])):
            counts[:, column] = torch.bincount(those, minlength=len(counts))
        return counts

    def gather(self) -> None:
        """Adds what all processes have; each then computes the same."""
        parts = [torch.zeros_like(self.counts)] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.counts)
        self.counts = torch.stack(parts).sum(0)

    def compute(self) -> PanopticResult:
        """The quality of everything added so far."""
        ious, matches, invented, missed = self.counts.unbind(1)
        recognition = 100 * matches / (matches + 0.5 * invented + 0.5 * missed)  # 0 / 0 is NaN: not there at all
        segmentation = (100 * ious / matches.clamp(min=1)).where(recognition.isfinite(), torch.nan)
        figures = {"pq": segmentation * recognition / 100, "sq": segmentation, "rq": recognition}
        groups = {"": slice(None), "_things": slice(None, self.num_things), "_stuff": slice(self.num_things, None)}
        stats = {
            name + group: values[places].nanmean().item()
            for group, places in groups.items()
            for name, values in figures.items()
        }
        by_class = {
            title: {name: values[label].item() for name, values in figures.items()}
            for label, title in enumerate(self.class_names)
        }
        return PanopticResult(stats, by_class)


def _places(found: PanopticMap) -> Tensor:
    """``found.ids`` with the segments numbered from 1 in their order, ``(H, W)``, int64."""
    ids = found.ids.cpu().long()
    numbers = [segment.id for segment in found.segments]
    if min(numbers, default=1) < 1 or len(set(numbers)) < len(numbers):
        wrong = min(numbers) if min(numbers) < 1 else max(numbers, key=numbers.count)
        raise InputError(
            f"the panoptic map of {found.path or 'an image'} has "
            + (f"two segments with the id {wrong}" if wrong > 0 else f"a segment with the id {wrong}, but 0 is void")
            + "; number its segments from 1"
        )
    known, order = torch.tensor([0, *numbers]).sort()
    place = torch.bucketize(ids, known).clamp(max=len(known) - 1)
    if not torch.equal(known[place], ids):
        raise InputError(f"the panoptic map of {found.path or 'an image'} has pixels of segments that it does not list")
    return order[place]


def _shared_pixels(true_HW: Tensor, found_HW: Tensor, rows: int, columns: int) -> Tensor:
    """Pixels of each pair of a true and a found segment, ``(rows, columns)``; the first of both are void."""
    if true_HW.shape != found_HW.shape:
        sizes = " and ".join(" x ".join(map(str, ids.shape)) for ids in (found_HW, true_HW))
        raise InputError(f"a panoptic map and its truth have {sizes} pixels, which must be the same")
    pairs = true_HW.long() * columns + found_HW
    return torch.bincount(pairs.flatten(), minlength=rows * columns).reshape(rows, columns)


def _counting_crowds(labels: Tensor, crowds: Tensor) -> Tensor:
    """Which segments are crowds that excuse others; of several of a class the last, as in panopticapi."""
    last = {int(labels[i]): int(i) for i in crowds.nonzero()[:, 0]}
    counting = torch.zeros_like(crowds)
    counting[list(last.values())] = True
    return counting


class PanopticEvaluator(Evaluator):
    """Panoptic quality. ``best`` and ``worst`` are ranked by that of all classes of an image together.

    Args:
        data: where the batches come from; it also has ``num_things``.
        examples: keep what only ``report`` needs.
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
        ious, matches, invented, missed = counts.sum(0).tolist()
        if not matches + invented + missed:
            return
        pq = 100 * ious / (matches + 0.5 * invented + 0.5 * missed)

        def make() -> Example:
            image = self.image(batch, i)
            prediction = replace(result, ids=result.ids.cpu(), names=self.class_names, image=image)
            target = replace(self._target(batch.targets[i]), image=image)
            title = f"{len(prediction.segments)} found, PQ {pq:.1f} %"
            legend = {"legend": False}
            return Example(prediction, title, target, f"{len(target.segments)} there", legend, legend)

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

    def report(self) -> list[Section]:
        """Quality, also by class, and the images with the highest and the lowest."""
        result = self.metric.compute()
        sections = [
            Section("Panoptic quality", tables=[quality_table(result)]),
            Section("By class", tables=[_by_class(result)]),
        ]
        what = "pictures: what there is, and what was found"
        return sections + self.example_sections(f"Best {what}", f"Worst {what}")


def panoptic_metrics(result: PanopticResult) -> list[Metric]:
    """The qualities that something is measured by, of all classes, things and stuff."""
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
    """A row for each group of classes, a column for each quality."""
    groups = {"": "all classes", "_things": "things", "_stuff": "stuff"}
    rows = [
        (title, *(format_value(result.stats[name + group]) for name in ("pq", "sq", "rq")))
        for group, title in groups.items()
    ]
    return Table(rows, ("", "PQ, %", "SQ, %", "RQ, %"))


def _by_class(result: PanopticResult) -> Table:
    """Worst class first; classes in neither targets nor predictions are left out."""
    present = {name: values for name, values in result.by_class.items() if not math.isnan(values["pq"])}
    rows: list[tuple[str | Bar, ...]] = [
        (name, *(f"{values[key]:.2f}" for key in ("pq", "sq", "rq")), Bar(values["pq"] / 100))
        for name, values in sorted(present.items(), key=lambda item: item[1]["pq"])
    ]
    return Table(rows, ("class", "PQ, %", "SQ, %", "RQ, %", ""))
