"""Panoptic segmentation: a network's own losses, panoptic quality."""

from __future__ import annotations

from typing import Any

import torch

from focalnet.metrics.panoptic import PanopticQuality
from focalnet.results import PanopticMap
from focalnet.samples import Batch, PanopticTarget
from focalnet.training.panoptic_found import PanopticPredictions
from focalnet.training.tasks.base import DenseTask


class PanopticTask(DenseTask):
    """Trains a network that finds objects and stuff, so that each pixel belongs to one of them."""

    name = "panoptic"
    inspector = PanopticPredictions

    def num_things(self, data: Any) -> int:
        return int(data.num_things)

    def on_validation_epoch_start(self) -> None:
        self.metric = PanopticQuality(self.data.class_names, self.data.num_things)

    def validation_step(self, batch: Batch[PanopticTarget], batch_idx: int) -> dict[str, list[PanopticMap]]:
        """Returns the segments of each image, as ``found``."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        found: list[PanopticMap] = self.trained.predict(images, batch.sizes, batch.original_sizes)
        self.metric.update(found, batch.targets)
        return {"found": found}

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            self.metric.gather()
        self.found = self.metric.compute()
        self.log_dict(self.found.summary(), sync_dist=False)
