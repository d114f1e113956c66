"""Panoptic segmentation: Mask2Former's losses, panoptic quality."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from focalnet.losses.segmentation import criterion
from focalnet.metrics.panoptic import PanopticQuality
from focalnet.models import Mask2Former
from focalnet.results import PanopticMap
from focalnet.samples import PanopticBatch
from focalnet.tasks.dense import DenseTask
from focalnet.tasks.panoptic_found import PanopticPredictions


class PanopticTask(DenseTask):
    """Trains Mask2Former to find objects and stuff, so that each pixel belongs to one of them."""

    network: Mask2Former
    network_type = Mask2Former
    kind = "Mask2Former"
    inspector = PanopticPredictions

    def configure_model(self) -> None:
        super().configure_model()
        self.ask_for("panoptic", self.data.num_things)
        self.criterion = criterion(self.network.config)

    def training_step(self, batch: PanopticBatch, batch_idx: int) -> Tensor:
        self.reseed(batch_idx)
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        outputs = self.network.training_outputs(images)
        losses = self.criterion(outputs, [truth.segments() for truth in batch["truths"]])
        return self.total(losses, len(images))

    def on_validation_epoch_start(self) -> None:
        self.metric = PanopticQuality(self.data.class_names, self.data.num_things)

    def validation_step(self, batch: PanopticBatch, batch_idx: int) -> dict[str, list[PanopticMap]]:
        """Returns the segments of each image, as ``found``."""
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        found: Any = self.trained.segment(images, batch["sizes"], batch["original_sizes"])
        self.metric.update(found, batch["truths"])
        return {"found": found}

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            self.metric.gather()
        self.found = self.metric.compute()
        self.log_dict(self.found.summary(), sync_dist=False)
