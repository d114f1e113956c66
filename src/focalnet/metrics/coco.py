"""Average precision and recall as COCO defines them. pycocotools, the reference, computes them."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from focalnet.errors import require
from focalnet.structures import Detections

#: Boxes, or masks.
Kind: TypeAlias = Literal["box", "mask"]

_IOU_TYPE = {"box": "bbox", "mask": "segm"}
# In the order of COCOeval.stats; "_100" is the number of detections an image.
_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_RECALLS = ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")
_ALL_SIZES, _MOST = 0, -1  # places in COCOeval's axes: objects of any size, the most detections an image


@dataclass(frozen=True, eq=False)
class CocoResult:
    """How well boxes or masks were found; all values in percent, NaN where there is nothing to find.

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
        annotations: ``images``, ``annotations`` and ``categories`` in COCO's form.
        masks: evaluate masks, too; every annotation then needs a segmentation.
    """

    def __init__(self, annotations: Mapping[str, Any], *, masks: bool = False) -> None:
        self.annotations = annotations
        self.kinds: tuple[Kind, ...] = ("box", "mask") if masks else ("box",)
        self.category_ids = [category["id"] for category in annotations["categories"]]
        self.results: list[dict[str, Any]] = []
        self.image_ids: list[int] = []

    def update(self, detections: Iterable[Detections], image_ids: Iterable[int]) -> None:
        """Adds what was found in some images."""
        for found, image_id in zip(detections, image_ids, strict=True):
            self.image_ids.append(image_id)
            self.results += coco_results(found, image_id, self.category_ids)

    def gather(self) -> None:
        """Adds what all processes have; each then computes the same."""
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self.results, self.image_ids))
        self.results = [result for results, _ in parts for result in results]
        self.image_ids = [image_id for _, image_ids in parts for image_id in image_ids]

    def compute(self) -> dict[Kind, CocoResult]:
        """Compares everything added so far with the annotations of those images."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells each of its steps
            truth = _dataset(self.annotations)
            return {kind: _evaluate(truth, self.results, sorted(set(self.image_ids)), kind) for kind in self.kinds}


def summary(results: Mapping[Kind, CocoResult]) -> dict[str, float]:
    """One number a name: ``box_ap``, ``box_ap50``, ..., ``mask_ap``, ...; without those that nothing is measured by."""
    named = {f"{kind}_{name}": value for kind, result in results.items() for name, value in result.stats.items()}
    return {name: value for name, value in named.items() if not np.isnan(value)}


def coco_results(found: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The objects of an image in COCO's result form, which its server and pycocotools take.

    Args:
        found: the objects.
        image_id: of the image, in the annotation file.
        category_ids: by label.
    """
    from_masks: list[dict[str, Any]] = []
    if found.masks is not None:
        codes = require("pycocotools.mask", "dense")
        bitmaps_HWN = found.masks.cpu().numpy().astype(np.uint8).transpose(1, 2, 0)
        encoded = codes.encode(np.asfortranarray(bitmaps_HWN)) if len(found) else []
        from_masks = [{"segmentation": {**code, "counts": code["counts"].decode()}} for code in encoded]
    corners = found.boxes.double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    scores, labels = found.scores.double().tolist(), found.labels.tolist()
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[labels[i]],
            "bbox": boxes[i],
            "score": scores[i],
            **(from_masks[i] if from_masks else {}),
        }
        for i in range(len(found))
    ]


def _dataset(content: Mapping[str, Any]) -> Any:
    dataset = require("pycocotools.coco", "dense").COCO()
    dataset.dataset = copy.deepcopy(dict(content))  # it notes in the entries what it ignores
    dataset.createIndex()
    return dataset


def _evaluate(truth: Any, results: list[dict[str, Any]], image_ids: list[int], kind: Kind) -> CocoResult:
    evaluation = require("pycocotools.cocoeval", "dense").COCOeval(truth, _loaded(truth, results), _IOU_TYPE[kind])
    evaluation.params.imgIds = image_ids
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
        return truth.loadRes(copy.deepcopy(results))
    return _dataset({**truth.dataset, "annotations": []})  # pycocotools cannot load none


def _percent(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """COCOeval's -1 is "nothing to find"."""
    return np.where(values < 0, np.nan, 100.0 * values)
