"""What a segmenter found in the validation images: counts of pixels, and the pictures with the most and least right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch.nn.functional as F
from torch import Tensor

from focalnet.metrics.semantic import SemanticResult, evaluate
from focalnet.results import SemanticMap
from focalnet.samples import Batch, LabelMapTarget
from focalnet.training.dense_found import DensePredictions


@dataclass(frozen=True)
class InspectedMap:
    """A validation image as the network saw it: what there is, what was found, and its mean IoU in percent."""

    miou: float
    true: SemanticMap
    found: SemanticMap


class SemanticPredictions(DensePredictions[InspectedMap]):
    """What the network found in every validation image.

    After ``trainer.validate``, besides what ``DensePredictions`` has: ``result``. ``best`` and ``worst`` are so by mean
    IoU.
    """

    def figures(self) -> dict[str, float]:
        """``miou``, ``pixel_accuracy`` and ``mean_accuracy`` in percent."""
        return self.result.summary()

    def inspect(self, task: Any, found: SemanticMap, batch: Batch[LabelMapTarget], i: int) -> None:
        there = batch.targets[i].labels
        miou = evaluate(task.metric.count(found.labels, there).numpy()).miou

        def make() -> InspectedMap:
            picture, size = self.picture(batch, i), batch.sizes[i]
            true, seen = (SemanticMap(_resized(labels, size), self.names, picture) for labels in (there, found.labels))
            return InspectedMap(miou, true, seen)

        if miou == miou:  # not a number where nothing is labelled
            self.keep(make, good=miou, bad=-miou)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.result: SemanticResult = pl_module.found  # type: ignore[assignment]


def _resized(labels_HW: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(labels_HW.cpu()[None, None].double(), size=size, mode="nearest")[0, 0].long()
