"""What a detector found in the validation images: figures, confusions, and pictures of hits and misses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F

from focalnet.metrics.coco import CocoResult, summary
from focalnet.metrics.confusion import DetectionConfusion
from focalnet.metrics.panoptic import PanopticResult
from focalnet.results import Detections
from focalnet.samples import Batch, ObjectTarget
from focalnet.training.dense_found import DensePredictions, gathered

if TYPE_CHECKING:
    from focalnet.metrics.coco import Kind

MIN_SCORE = 0.5  # of what is counted and drawn


@dataclass(frozen=True)
class Inspected:
    """A validation image as the network saw it: what there is, what was found, and how many of both do not agree."""

    mistakes: int
    true: Detections
    found: Detections


class DetectionPredictions(DensePredictions[Inspected]):
    """What the network found in every validation image.

    After ``trainer.validate``, besides what ``DensePredictions`` has: ``results`` by kind, ``segmented`` where masks
    are found, ``confusion`` of all processes. ``best`` are images with the most objects and no mistake, ``worst`` those
    with the most mistakes.
    """

    def figures(self) -> dict[str, float]:
        """``box_ap``, ``box_ap50``, ..., of masks also ``pq_things``, ... in percent."""
        figures = summary(self.results)
        if self.segmented is not None:
            figures |= {name: value for name, value in self.segmented.summary().items() if name.endswith("_things")}
        return figures

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self.confusion = DetectionConfusion(len(self.names), min_score=MIN_SCORE)

    def inspect(self, task: Any, found: Detections, batch: Batch[ObjectTarget], i: int) -> None:
        size = batch.sizes[i]
        seen = _resized(_on_cpu(found), size).above(MIN_SCORE)
        target = _target_on_cpu(batch.targets[i])
        before = self.confusion.matrix.clone()
        self.confusion.update(seen, target)
        counted = self.confusion.matrix - before
        mistakes = int(counted.sum() - counted.diagonal().sum())

        def make() -> Inspected:
            picture, boxes, masks = self.picture(batch, i), target.boxes, batch.targets[i].masks
            masks = None if masks is None else masks[:, : size[0], : size[1]].cpu()
            scores = torch.ones(len(boxes))
            true = Detections(boxes, scores, target.labels, self.names, masks, size=size, image=picture)
            return Inspected(mistakes, true, replace(seen, names=self.names, image=picture))

        if mistakes:
            self.keep(make, bad=mistakes)
        elif objects := len(target.boxes):
            self.keep(make, good=objects)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.results: Mapping[Kind, CocoResult] = pl_module.found  # type: ignore[assignment]
        self.segmented: PanopticResult | None = pl_module.segmented  # type: ignore[assignment]
        self.confusion.matrix = torch.stack(gathered(trainer, self.confusion.matrix)).sum(0)


def _on_cpu(found: Detections) -> Detections:
    masks = None if found.masks is None else found.masks.cpu()
    return replace(
        found,
        boxes=found.boxes.float().cpu(),
        scores=found.scores.float().cpu(),
        labels=found.labels.cpu(),
        masks=masks,
    )


def _target_on_cpu(target: ObjectTarget) -> ObjectTarget:
    return ObjectTarget(boxes=target.boxes.cpu(), labels=target.labels.cpu(), masks=None, ignored=target.ignored.cpu())


def _resized(found: Detections, size: tuple[int, int]) -> Detections:
    """In pixels of another size of the image."""
    height, width = size
    scale = torch.tensor([width / found.size[1], height / found.size[0]] * 2)
    masks = found.masks
    if masks is not None:
        masks = F.interpolate(masks[:, None].float(), size=size, mode="nearest")[:, 0].bool()
    return replace(found, boxes=found.boxes * scale, masks=masks, size=size)
