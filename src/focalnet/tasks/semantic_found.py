"""What a segmenter found in the validation images: counts of pixels, and the pictures with the most and least right."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.metrics.semantic import SemanticResult, evaluate
from focalnet.structures import SemanticBatch, SemanticMap
from focalnet.tasks.callbacks import Inspector
from focalnet.tasks.found import picture_of


@dataclass(frozen=True)
class InspectedMap:
    """A validation image as the network saw it: what there is, what was found, and its mean IoU in percent."""

    miou: float
    true: SemanticMap
    found: SemanticMap


class SemanticPredictions(Inspector):
    """What the network found in every validation image.

    After ``trainer.validate``: ``result``, ``images`` of all processes; ``best`` and ``worst``, images of this process;
    ``seconds``.
    """

    def __init__(self, pictures: int = 6) -> None:
        self.pictures = pictures

    def summary(self) -> dict[str, Any]:
        """``miou``, ``pixel_accuracy`` and ``mean_accuracy`` in percent, ``images``, ``images_per_s``."""
        figures = {name: round(value, 6) for name, value in self.result.summary().items()}
        return {**figures, "images": self.images, "images_per_s": round(self.images / self.seconds, 1)}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.names, self.preprocessing = data.class_names, data.preprocessing
        self.best: list[InspectedMap] = []
        self.worst: list[InspectedMap] = []
        self.images = 0
        self.started = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: SemanticBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        metric: Any = pl_module.metric
        for i, (found, labels) in enumerate(zip(outputs["found"], batch["labels"], strict=True)):
            miou = evaluate(metric.count(found.labels, labels).numpy()).miou
            if miou == miou:  # not a number where nothing is labelled
                self._keep(miou, found.labels, labels, batch["images"][i], batch["sizes"][i])
        self.images += len(outputs["found"])

    def _keep(self, miou: float, found: Tensor, true: Tensor, image: Tensor, size: tuple[int, int]) -> None:
        """Only as many as are drawn at the end are kept, at the size the network saw: pictures are large."""
        best, worst = self.best[-1:], self.worst[-1:]
        full = len(self.best) >= self.pictures
        if full and miou <= best[0].miou and miou >= worst[0].miou:
            return
        picture = picture_of(image[:, : size[0], : size[1]].cpu(), self.preprocessing)
        both = [SemanticMap(_resized(labels.cpu(), size), self.names, picture) for labels in (true, found)]
        one = InspectedMap(miou, *both)
        self.best = sorted([*self.best, one], key=lambda kept: -kept.miou)[: self.pictures]
        self.worst = sorted([*self.worst, one], key=lambda kept: kept.miou)[: self.pictures]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.monotonic() - self.started
        self.result: SemanticResult = pl_module.found  # type: ignore[assignment]
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self.images)
            self.images = sum(parts)


def _resized(labels_HW: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(labels_HW[None, None].double(), size=size, mode="nearest")[0, 0].long()
