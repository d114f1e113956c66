"""Average precision and recall as COCO defines them. pycocotools, the reference, computes them.

pycocotools takes a match with an annotation whose id is 0 for no match, and keeps only one of two annotations with the
same id. So it is given our own numbers, from 1 in the order of the lists: the figures do not depend on any id.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from focalnet.errors import DataError, InputError, require
from focalnet.results import Detections

#: Boxes, or masks.
Kind: TypeAlias = Literal["box", "mask"]

_IOU_TYPE = {"box": "bbox", "mask": "segm"}
# In the order of COCOeval.stats; "_100" is the number of detections an image.
_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_RECALLS = ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")
_ALL_SIZES, _MOST = 0, -1  # places in COCOeval's axes: objects of any size, the most detections an image


@dataclass(frozen=True, eq=False)
class CocoResult:
    """How good predicted boxes or masks are; all values in percent, NaN where there are no targets.

    Args:
        kind: boxes or masks.
        stats: ``ap`` (mean over IoU 0.50 to 0.95), ``ap50``, ``ap75``, ``ap_small`` (below 32 x 32 pixels),
            ``ap_medium``, ``ap_large`` (above 96 x 96), ``ar_1``, ``ar_10``, ``ar_100`` (detections an image),
            ``ar_small``, ``ar_medium``, ``ar_large``.
        by_class: ``ap``, ``ap50`` and ``ar_100`` by class name.
        precision: at 101 recalls from 0 to 1, ``(thresholds, 101, classes)``, IoU thresholds 0.50, 0.55 ... 0.95;
            NaN for a class without objects.
    """

    kind: Kind
    stats: dict[str, float]
    by_class: dict[str, dict[str, float]]
    precision: npt.NDArray[np.float64]


class CocoMetric:
    """Collects detections, and compares them with the annotations at the end.

    Args:
        annotations: ``images``, ``annotations`` and ``categories`` in COCO's form. Ids of images and categories are
            numbers or text, each given once; those of annotations are not read. Labels count categories in their order.
        masks: evaluate masks, too; every annotation then needs a segmentation.

    Raises:
        DataError: an id of an image or category is missing or given twice, or an annotation is of neither.
    """

    def __init__(self, annotations: Mapping[str, Any], *, masks: bool = False) -> None:
        self.annotations = annotations
        self.kinds: tuple[Kind, ...] = ("box", "mask") if masks else ("box",)
        self.category_ids = [category.get("id") for category in annotations["categories"]]
        self.results: list[dict[str, Any]] = []
        self.image_ids: list[Any] = []
        self._images = _numbers(annotations["images"], "image")
        self._categories = _numbers(annotations["categories"], "category")
        for place, entry in enumerate(annotations["annotations"], start=1):
            for key, known in (("image_id", self._images), ("category_id", self._categories)):
                if not _is_known(entry.get(key), known):
                    listed = "images" if key == "image_id" else "categories"
                    raise DataError(
                        f"annotation number {place}: its {key} {entry.get(key)!r} is not among the ids of the {listed}"
                        f"{_example(known)}; leave it out, or give it one of them"
                    )

    def update(self, detections: Iterable[Detections], image_ids: Iterable[Any]) -> None:
        """Adds the predictions for some images.

        Args:
            detections: of each image.
            image_ids: as in the annotations.

        Raises:
            InputError: the annotations have no such image.
        """
        for prediction, given in zip(detections, image_ids, strict=True):
            image_id = given.item() if isinstance(given, torch.Tensor) else given
            if not _is_known(image_id, self._images):
                raise InputError(
                    f"the image id {image_id!r} is not among those of the annotations{_example(self._images)}; "
                    "give update() the ids that the annotations have"
                )
            self.image_ids.append(image_id)
            self.results += prediction.to_coco(image_id, self.category_ids)

    def gather(self) -> None:
        """Adds what all processes have; each then computes the same."""
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self.results, self.image_ids))
        self.results = [result for results, _ in parts for result in results]
        self.image_ids = [image_id for _, image_ids in parts for image_id in image_ids]

    def compute(self) -> dict[Kind, CocoResult]:
        """Compares everything added so far with the annotations of those images."""
        truth = {
            "images": [{**entry, "id": place} for place, entry in enumerate(self.annotations["images"], start=1)],
            "categories": [{**one, "id": place} for place, one in enumerate(self.annotations["categories"], start=1)],
            "annotations": self._numbered(self.annotations["annotations"]),
        }
        results = self._numbered(self.results)
        image_numbers = sorted({self._images[image_id] for image_id in self.image_ids})
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells each of its steps
            return {kind: _evaluate(_dataset(truth), results, image_numbers, kind) for kind in self.kinds}

    def _numbered(self, entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Copies of annotations or results with our own numbers in place of ids."""
        return [
            {
                **entry,
                "id": place,
                "image_id": self._images[entry["image_id"]],
                "category_id": self._categories[entry["category_id"]],
            }
            for place, entry in enumerate(entries, start=1)
        ]


def summary(results: Mapping[Kind, CocoResult]) -> dict[str, float]:
    """One number a name: ``box_ap``, ``box_ap50``, ..., ``mask_ap``, ...; without those that nothing is measured by."""
    named = {f"{kind}_{name}": value for kind, result in results.items() for name, value in result.stats.items()}
    return {name: value for name, value in named.items() if not np.isnan(value)}


def _numbers(entries: Iterable[Mapping[str, Any]], kind: str) -> dict[Hashable, int]:
    """Places in a list, from 1, by id."""
    numbers: dict[Hashable, int] = {}
    for place, entry in enumerate(entries, start=1):
        number = entry.get("id")
        if number is None or not isinstance(number, Hashable):
            raise DataError(f"{kind} number {place} of the annotations has no id; give each its own")
        if number in numbers:
            raise DataError(
                f"{kind} number {place} of the annotations has the id {number!r} of {kind} number {numbers[number]}; "
                "give each its own"
            )
        numbers[number] = place
    return numbers


def _is_known(number: Any, numbers: Mapping[Hashable, int]) -> bool:
    return isinstance(number, Hashable) and number in numbers


def _example(numbers: Mapping[Hashable, int]) -> str:
    """An id, so that a text in place of a number is seen at once."""
    return f", e.g. {next(iter(numbers))!r}" if numbers else ""


def _dataset(content: Mapping[str, Any]) -> Any:
    dataset = require("pycocotools.coco", "dense").COCO()
    # It notes in the entries what it ignores.
    dataset.dataset = {name: [dict(entry) for entry in entries] for name, entries in content.items()}
    dataset.createIndex()
    return dataset


def _evaluate(truth: Any, results: list[dict[str, Any]], image_numbers: list[int], kind: Kind) -> CocoResult:
    evaluation = require("pycocotools.cocoeval", "dense").COCOeval(truth, _loaded(truth, results), _IOU_TYPE[kind])
    evaluation.params.imgIds = image_numbers
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = dict(zip(_STATS + _RECALLS, _percent(evaluation.stats).tolist(), strict=True))
    precision = _percent(evaluation.eval["precision"][:, :, :, _ALL_SIZES, _MOST])
    recall = _percent(evaluation.eval["recall"][:, :, _ALL_SIZES, _MOST])
    names = [truth.cats[number]["name"] for number in evaluation.params.catIds]
    by_class = {
        name: {"ap": precision[:, :, i].mean(), "ap50": precision[0, :, i].mean(), "ar_100": recall[:, i].mean()}
        for i, name in enumerate(names)
    }
    return CocoResult(kind, stats, {k: {n: float(x) for n, x in v.items()} for k, v in by_class.items()}, precision)


def _loaded(truth: Any, results: list[dict[str, Any]]) -> Any:
    if results:
        return truth.loadRes([dict(result) for result in results])
    return _dataset({**truth.dataset, "annotations": []})  # pycocotools cannot load none


def _percent(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """COCOeval's -1 is "no targets"."""
    return np.where(values < 0, np.nan, 100.0 * values)
