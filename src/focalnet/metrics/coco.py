"""COCO average precision and recall, computed by pycocotools, the reference.

pycocotools treats a match with the annotation id 0 as no match, and keeps only one of two annotations with the same id.
So ids are replaced by numbers from 1 in the order of the lists, and the metrics do not depend on ids.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from focalnet.errors import DataError, InputError, require
from focalnet.metrics.balance import balance_section
from focalnet.metrics.base import (
    Bar,
    ConfusionMatrix,
    Evaluator,
    Example,
    Metric,
    PrecisionRecall,
    Section,
    Table,
    format_value,
    gather_objects,
    rounded,
)
from focalnet.metrics.confusion import DetectionConfusion
from focalnet.metrics.instances import predicted_map, target_map
from focalnet.metrics.panoptic import PanopticQuality, panoptic_metrics, quality_table
from focalnet.results import Detections
from focalnet.samples import Batch, ObjectTarget, Size

MIN_SCORE = 0.5  # lowest score of detections in the confusion matrix and in examples
MOST_CLASSES = 100  # with more classes, a confusion matrix is unreadable

#: Boxes, or masks.
Kind: TypeAlias = Literal["box", "mask"]

_IOU_TYPE = {"box": "bbox", "mask": "segm"}
# In the order of COCOeval.stats; "_100" is the number of detections per image.
_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_RECALLS = ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")
_TITLES = {
    "ap": "AP",
    "ap50": "AP at IoU 0.50",
    "ap75": "AP at IoU 0.75",
    **{f"ap_{size}": f"AP of {size} objects" for size in ("small", "medium", "large")},
    **{f"ar_{number}": f"AR with {number} detection{'s' * (number > 1)} per image" for number in (1, 10, 100)},
    **{f"ar_{size}": f"AR of {size} objects" for size in ("small", "medium", "large")},
}
_ALL_SIZES, _MOST = 0, -1  # indices in COCOeval's axes: objects of any size, the most detections per image


@dataclass(frozen=True, eq=False)
class CocoResult:
    """AP and AR of boxes or masks; all values in percent, NaN where there are no targets.

    Args:
        kind: boxes or masks.
        stats: ``ap`` (mean over IoU 0.50 to 0.95), ``ap50``, ``ap75``, ``ap_small`` (below 32 x 32 pixels),
            ``ap_medium``, ``ap_large`` (above 96 x 96), ``ar_1``, ``ar_10``, ``ar_100`` (detections per image),
            ``ar_small``, ``ar_medium``, ``ar_large``.
        by_class: ``ap``, ``ap50`` and ``ar_100`` by class name.
        precision: at 101 recall values from 0 to 1, ``(thresholds, 101, classes)``, IoU thresholds 0.50, 0.55 ... 0.95;
            NaN for a class without objects.
    """

    kind: Kind
    stats: dict[str, float]
    by_class: dict[str, dict[str, float]]
    precision: npt.NDArray[np.float64]


class CocoMetric:
    """Collects detections and compares them with the annotations at the end.

    Args:
        annotations: ``images``, ``annotations`` and ``categories`` in the COCO format. Ids of images and categories are
            numbers or text, and unique; ids of annotations are not read. Labels number the categories in their order.
        masks: also evaluate masks; every annotation then needs a segmentation.

    Raises:
        DataError: the id of an image or category is missing or not unique, or an annotation refers to an unknown id.
    """

    def __init__(self, annotations: Mapping[str, Any], *, masks: bool = False) -> None:
        self.annotations = annotations
        self.kinds: tuple[Kind, ...] = ("box", "mask") if masks else ("box",)
        self.category_ids = [category.get("id") for category in annotations["categories"]]
        self.results: list[dict[str, Any]] = []
        self.image_ids: list[Any] = []
        self._images = _numbers(annotations["images"], "image")
        self._categories = _numbers(annotations["categories"], "category")
        for number, entry in enumerate(annotations["annotations"], start=1):
            for key, known in (("image_id", self._images), ("category_id", self._categories)):
                if not _is_known(entry.get(key), known):
                    listed = "images" if key == "image_id" else "categories"
                    raise DataError(
                        f"annotation number {number}: its {key} {entry.get(key)!r} is not among the ids of the {listed}"
                        f"{_example(known)}; remove the annotation, or correct the id"
                    )

    def update(self, detections: Iterable[Detections], image_ids: Iterable[Any]) -> None:
        """Adds the predictions for some images.

        Args:
            detections: one for each image.
            image_ids: ids of the images in the annotations.

        Raises:
            InputError: the annotations have no image with this id.
        """
        for prediction, value in zip(detections, image_ids, strict=True):
            image_id = value.item() if isinstance(value, torch.Tensor) else value
            if not _is_known(image_id, self._images):
                raise InputError(
                    f"the image id {image_id!r} is not among those of the annotations{_example(self._images)}; "
                    "call update() with ids of the annotations"
                )
            self.image_ids.append(image_id)
            self.results += prediction.to_coco(image_id, self.category_ids)

    def gather(self) -> None:
        """Combines the detections of all processes, so that each computes the same metrics."""
        gathered = gather_objects((self.results, self.image_ids))
        self.results = [result for results, _ in gathered for result in results]
        self.image_ids = [image_id for _, image_ids in gathered for image_id in image_ids]

    def compute(self) -> dict[Kind, CocoResult]:
        """Compares everything added so far with the annotations of these images."""
        targets = {
            "images": [{**entry, "id": number} for number, entry in enumerate(self.annotations["images"], start=1)],
            "categories": [
                {**entry, "id": number} for number, entry in enumerate(self.annotations["categories"], start=1)
            ],
            "annotations": self._numbered(self.annotations["annotations"]),
        }
        results = self._numbered(self.results)
        image_numbers = sorted({self._images[image_id] for image_id in self.image_ids})
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints each step
            return {kind: _evaluate(_dataset(targets), results, image_numbers, kind) for kind in self.kinds}

    def _numbered(self, entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Copies of annotations or results with our numbers instead of ids."""
        return [
            {
                **entry,
                "id": number,
                "image_id": self._images[entry["image_id"]],
                "category_id": self._categories[entry["category_id"]],
            }
            for number, entry in enumerate(entries, start=1)
        ]


def summary(results: Mapping[Kind, CocoResult]) -> dict[str, float]:
    """Values by name: ``box_ap``, ``box_ap50``, ..., ``mask_ap``, ...; undefined ones are left out."""
    named = {f"{kind}_{name}": value for kind, result in results.items() for name, value in result.stats.items()}
    return {name: value for name, value in named.items() if not np.isnan(value)}


def _numbers(entries: Iterable[Mapping[str, Any]], entity: str) -> dict[Hashable, int]:
    """Positions in a list, from 1, by id."""
    numbers: dict[Hashable, int] = {}
    for number, entry in enumerate(entries, start=1):
        entry_id = entry.get("id")
        if entry_id is None or not isinstance(entry_id, Hashable):
            raise DataError(f"{entity} number {number} of the annotations has no id; give each its own")
        if entry_id in numbers:
            raise DataError(
                f"{entity} number {number} of the annotations has the id {entry_id!r} of {entity} number "
                f"{numbers[entry_id]}; give each its own"
            )
        numbers[entry_id] = number
    return numbers


def _is_known(entry_id: Any, numbers: Mapping[Hashable, int]) -> bool:
    return isinstance(entry_id, Hashable) and entry_id in numbers


def _example(numbers: Mapping[Hashable, int]) -> str:
    """An example of an id, which shows at once whether ids are text or numbers."""
    return f", e.g. {next(iter(numbers))!r}" if numbers else ""


def _dataset(content: Mapping[str, Any]) -> Any:
    dataset = require("pycocotools.coco", "dense").COCO()
    # Copied, because pycocotools marks ignored entries.
    dataset.dataset = {name: [dict(entry) for entry in entries] for name, entries in content.items()}
    dataset.createIndex()
    return dataset


def _evaluate(targets: Any, results: list[dict[str, Any]], image_numbers: list[int], kind: Kind) -> CocoResult:
    evaluation = require("pycocotools.cocoeval", "dense").COCOeval(targets, _loaded(targets, results), _IOU_TYPE[kind])
    evaluation.params.imgIds = image_numbers
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = dict(zip(_STATS + _RECALLS, _percent(evaluation.stats).tolist(), strict=True))
    precision = _percent(evaluation.eval["precision"][:, :, :, _ALL_SIZES, _MOST])
    recall = _percent(evaluation.eval["recall"][:, :, _ALL_SIZES, _MOST])
    names = [targets.cats[number]["name"] for number in evaluation.params.catIds]
    by_class = {
        name: {"ap": precision[:, :, i].mean(), "ap50": precision[0, :, i].mean(), "ar_100": recall[:, i].mean()}
        for i, name in enumerate(names)
    }
    return CocoResult(kind, stats, {k: {n: float(x) for n, x in v.items()} for k, v in by_class.items()}, precision)


def _loaded(targets: Any, results: list[dict[str, Any]]) -> Any:
    if results:
        return targets.loadRes([dict(result) for result in results])
    return _dataset({**targets.dataset, "annotations": []})  # pycocotools cannot load an empty list


def _percent(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """In percent; COCOeval's -1, which means "no targets", becomes NaN."""
    return np.where(values < 0, np.nan, 100.0 * values)


class CocoEvaluator(Evaluator):
    """Average precision of boxes, and if there are masks, their average precision and panoptic quality.

    ``best`` are images with the most objects and no mistake, ``worst`` those with the most mistakes.

    Args:
        data: where the batches come from.
        examples: keep the best and the worst images, which only ``report`` needs.
        masks: whether data and predictions have masks.
        split: whose annotations are the targets: ``"val"`` or ``"test"``.
    """

    def __init__(self, data: Any, *, examples: bool = False, masks: bool = False, split: str = "val") -> None:
        super().__init__(data, examples=examples)
        self.samples = data.samples[split]
        self.metric = CocoMetric(self.samples.coco.to_coco(self.samples.images), masks=masks)
        self.quality = PanopticQuality(self.class_names, len(self.class_names)) if masks else None
        self.confusion = DetectionConfusion(len(self.class_names), min_score=MIN_SCORE)

    def update(self, results: Sequence[Detections], batch: Batch[ObjectTarget]) -> None:
        super().update(results, batch)
        ids = [info.image_id for info in batch.infos]
        self.metric.update(results, ids)
        if self.quality is not None:
            annotated = (self.samples.annotated_masks(number) for number in ids)
            self.quality.update(map(predicted_map, results), (target_map(*objects) for objects in annotated))
        for i, result in enumerate(results):
            self._compare(result, batch, i)

    def _compare(self, result: Detections, batch: Batch[ObjectTarget], i: int) -> None:
        """Counts the boxes of an image in the confusion matrix, and keeps the image if it is an example."""
        size = batch.sizes[i]
        masks = result.masks if self.examples else None  # which only examples show
        predictions = _resized(_on_cpu(replace(result, masks=masks)), size).above(MIN_SCORE)
        target = _target_on_cpu(batch.targets[i])
        previous = self.confusion.matrix.clone()
        self.confusion.update(predictions, target)
        counts = self.confusion.matrix - previous
        mistakes = int(counts.sum() - counts.diagonal().sum())
        if not self.examples:
            return

        def make() -> Example:
            image, boxes, masks = self.image(batch, i), target.boxes, batch.targets[i].masks
            masks = None if masks is None else masks[:, : size[0], : size[1]].cpu()
            scores = torch.ones(len(boxes))
            targets = Detections(boxes, scores, target.labels, self.class_names, masks, size=size, image=image)
            return Example(
                replace(predictions, names=self.class_names, image=image),
                f"{len(predictions)} predicted",
                targets,
                f"{len(targets)} annotated",
                target_options={"scores": False},
            )

        if mistakes:
            self.keep(make, bad=mistakes)
        elif objects := len(target.boxes):
            self.keep(make, good=objects)

    def gather(self) -> None:
        super().gather()
        self.metric.gather()
        if self.quality is not None:
            self.quality.gather()
        self.confusion.matrix = torch.stack(gather_objects(self.confusion.matrix)).sum(0)

    def compute(self) -> list[Metric]:
        """``box_ap``, ``box_ap50``, ..., and for masks ``mask_ap``, ..., ``pq_things``, ... in percent."""
        self.results = self.metric.compute()
        metrics = [
            Metric(
                f"{kind}_{name}",
                f"{kind} {_TITLES[name]}",
                value,
                headline=name == "ap",
                summary=name in ("ap", "ap50"),
                per_epoch=name in ("ap", "ap50", "ap75"),
            )
            for kind, result in self.results.items()
            for name, value in result.stats.items()
            if not np.isnan(value)
        ]
        if self.quality is not None:
            self.segmented = self.quality.compute()
            metrics += [
                replace(metric, headline=False, summary=False, curve=False)
                for metric in panoptic_metrics(self.segmented)
                if metric.name.endswith("_things")
            ]
        return metrics

    def details(self) -> dict[str, Any]:
        """``per_class``, and ``confusion_matrix`` of boxes with a score of at least ``MIN_SCORE``."""
        targets = self.confusion.matrix.sum(1).tolist()
        per_class = [
            {
                "name": name,
                "objects": targets[label],
                **{
                    f"{kind}_{key}": rounded(value)
                    for kind, result in self.results.items()
                    for key, value in result.by_class[name].items()
                },
            }
            for label, name in enumerate(self.class_names)
        ]
        names = [*self.class_names]
        matrix = {"rows": [*names, "background"], "columns": [*names, "missed"], "min_score": MIN_SCORE}
        return {"per_class": per_class, "confusion_matrix": {**matrix, "counts": self.confusion.matrix.tolist()}}

    def table_rows(self, result: Detections, batch: Batch[ObjectTarget], i: int) -> list[dict[str, Any]]:
        """A row for each object that is predicted, with the image's id in the annotation file."""
        rows = replace(result, names=self.class_names).table_rows()
        return [{"image_id": batch.infos[i].image_id, **row} for row in rows]

    def report(self) -> list[Section]:
        """Averages, precision-recall curves, AP by class, confusions, images with no and with the most mistakes."""
        names = self.class_names
        sections = [Section("Average precision and recall", tables=[_averages(self.results)])]
        if self.quality is not None:
            title = "Panoptic quality of masks merged into one map, best first"
            sections.append(Section(title, tables=[quality_table(self.segmented)]))
        matrix = self.confusion.matrix.numpy()
        score = f"predicted with a score of {MIN_SCORE:g} or more"
        targets, predicted = matrix.sum(1)[:-1], matrix.sum(0)[:-1]
        sections.append(balance_section(names, targets, predicted, what="objects", predicted_title=score))
        for kind, result in self.results.items():
            curves = PrecisionRecall(result.precision, names)
            sections.append(Section(f"Precision-recall curves, {kind}", charts=[curves]))
            sections.append(Section(f"By class, {kind}", tables=[_by_class(result)]))
        if len(names) <= MOST_CLASSES:
            chart = ConfusionMatrix(self.confusion.matrix.numpy(), [*names, "background"], [*names, "missed"])
            sections.append(Section(f"Confusion matrix, boxes with a score of at least {MIN_SCORE:g}", charts=[chart]))
        what = "targets and predictions"
        return sections + self.example_sections(f"No mistakes: {what}", f"Most mistakes: {what}")


def _averages(results: Mapping[Kind, CocoResult]) -> Table:
    """A row for each average, a column for boxes and one for masks."""
    first = next(iter(results.values()))
    rows: list[tuple[str | Bar, ...]] = [
        (_TITLES[name], *(format_value(result.stats[name]) for result in results.values())) for name in first.stats
    ]
    return Table(rows, ("", *(f"{kind}, %" for kind in results)))


def _by_class(result: CocoResult) -> Table:
    """Lowest AP first; classes without objects are left out."""
    present = {name: values for name, values in result.by_class.items() if not np.isnan(values["ap"])}
    rows: list[tuple[str | Bar, ...]] = [
        (name, *(format_value(values[key]) for key in ("ap", "ap50", "ar_100")), Bar(values["ap"] / 100))
        for name, values in sorted(present.items(), key=lambda item: item[1]["ap"])
    ]
    return Table(rows, ("class", "AP, %", "AP50, %", "AR, %", ""))


def _on_cpu(result: Detections) -> Detections:
    masks = None if result.masks is None else result.masks.cpu()
    return replace(
        result,
        boxes=result.boxes.float().cpu(),
        scores=result.scores.float().cpu(),
        labels=result.labels.cpu(),
        masks=masks,
    )


def _target_on_cpu(target: ObjectTarget) -> ObjectTarget:
    return ObjectTarget(boxes=target.boxes.cpu(), labels=target.labels.cpu(), masks=None, ignored=target.ignored.cpu())


def _resized(result: Detections, size: Size) -> Detections:
    """Scales detections to another size of the image."""
    height, width = size
    scale = torch.tensor([width / result.size[1], height / result.size[0]] * 2)
    masks = result.masks
    if masks is not None:
        masks = F.interpolate(masks[:, None].float(), size=size, mode="nearest")[:, 0].bool()
    return replace(result, boxes=result.boxes * scale, masks=masks, size=size)
