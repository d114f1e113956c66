"""What a segmenter found in the validation images: panoptic quality, and the pictures where it is best and worst."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch

from focalnet.metrics.panoptic import PanopticResult
from focalnet.structures import PanopticBatch, PanopticMap, PanopticTruth, Segment
from focalnet.tasks.callbacks import Inspector
from focalnet.tasks.found import picture_of


@dataclass(frozen=True)
class InspectedSegments:
    """A validation image as the network saw it: what there is, what was found, and how well, all classes together."""

    pq: float
    true: PanopticMap
    found: PanopticMap


class PanopticPredictions(Inspector):
    """What the network found in every validation image.

    After ``trainer.validate``: ``result``, ``images`` of all processes; ``best`` and ``worst``, images of this process;
    ``seconds``.
    """

    def __init__(self, pictures: int = 6) -> None:
        self.pictures = pictures

    def summary(self) -> dict[str, Any]:
        """``pq``, ``sq``, ``rq``, ``pq_things``, ... in percent, ``images``, ``images_per_s``."""
        figures = {name: round(value, 6) for name, value in self.result.summary().items()}
        return {**figures, "images": self.images, "images_per_s": round(self.images / self.seconds, 1)}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.names, self.num_things, self.preprocessing = data.class_names, data.num_things, data.preprocessing
        self.best: list[InspectedSegments] = []
        self.worst: list[InspectedSegments] = []
        self.images = 0
        self.started = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: PanopticBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        metric: Any = pl_module.metric
        for i, (found, truth) in enumerate(zip(outputs["found"], batch["truths"], strict=True)):
            ious, matches, invented, missed = metric.count(found, truth).sum(0).tolist()
            if matches + invented + missed:
                pq = 100 * ious / (matches + 0.5 * invented + 0.5 * missed)
                self._keep(pq, found, truth, batch, i)
        self.images += len(outputs["found"])

    def _keep(self, pq: float, found: PanopticMap, truth: PanopticTruth, batch: PanopticBatch, i: int) -> None:
        """Only as many as are drawn at the end are kept: pictures are large."""
        if len(self.best) == self.pictures and self.worst[-1].pq <= pq <= self.best[-1].pq:
            return
        height, width = batch["sizes"][i]
        picture = picture_of(batch["images"][i, :, :height, :width].cpu(), self.preprocessing)
        seen = replace(found, ids=found.ids.cpu(), names=self.names, image=picture)
        one = InspectedSegments(pq, replace(self._true_map(truth), image=picture), seen)
        self.best = sorted([*self.best, one], key=lambda kept: -kept.pq)[: self.pictures]
        self.worst = sorted([*self.worst, one], key=lambda kept: kept.pq)[: self.pictures]

    def _true_map(self, truth: PanopticTruth) -> PanopticMap:
        ids = truth["ids"].cpu()
        areas = torch.bincount(ids.flatten(), minlength=len(truth["labels"]) + 1)[1:].tolist()
        segments = (
            Segment(number, label, label < self.num_things, 1.0, area)
            for number, (label, area) in enumerate(zip(truth["labels"].tolist(), areas, strict=True), start=1)
        )
        return PanopticMap(ids, tuple(segments), self.names)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.monotonic() - self.started
        self.result: PanopticResult = pl_module.found  # type: ignore[assignment]
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self.images)
            self.images = sum(parts)
