"""What a segmenter found in the validation images: panoptic quality, and the pictures where it is best and worst."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch

from focalnet.metrics.panoptic import PanopticResult
from focalnet.results import PanopticMap, Segment
from focalnet.samples import Batch, PanopticTarget
from focalnet.training.dense_found import DensePredictions


@dataclass(frozen=True)
class InspectedSegments:
    """A validation image as the network saw it: what there is, what was found, and how well, all classes together."""

    pq: float
    true: PanopticMap
    found: PanopticMap


class PanopticPredictions(DensePredictions[InspectedSegments]):
    """What the network found in every validation image.

    After ``trainer.validate``, besides what ``DensePredictions`` has: ``result``. ``best`` and ``worst`` are so by
    panoptic quality.
    """

    def figures(self) -> dict[str, float]:
        """``pq``, ``sq``, ``rq``, ``pq_things``, ... in percent."""
        return self.result.summary()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self.num_things: int = trainer.datamodule.num_things  # type: ignore[attr-defined]

    def inspect(self, task: Any, found: PanopticMap, batch: Batch[PanopticTarget], i: int) -> None:
        truth = batch.targets[i]
        ious, matches, invented, missed = task.metric.count(found, truth).sum(0).tolist()
        if not matches + invented + missed:
            return
        pq = 100 * ious / (matches + 0.5 * invented + 0.5 * missed)

        def make() -> InspectedSegments:
            picture = self.picture(batch, i)
            seen = replace(found, ids=found.ids.cpu(), names=self.names, image=picture)
            return InspectedSegments(pq, replace(self._true_map(truth), image=picture), seen)

        self.keep(make, good=pq, bad=-pq)

    def _true_map(self, truth: PanopticTarget) -> PanopticMap:
        ids = truth.ids.cpu()
        areas = torch.bincount(ids.flatten(), minlength=len(truth.labels) + 1)[1:].tolist()
        segments = (
            Segment(number, label, label < self.num_things, 1.0, area)
            for number, (label, area) in enumerate(zip(truth.labels.tolist(), areas, strict=True), start=1)
        )
        return PanopticMap(ids, tuple(segments), self.names)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.result: PanopticResult = pl_module.found  # type: ignore[assignment]
