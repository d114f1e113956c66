"""Detection and instance segmentation: a network's own losses, COCO's average precision, panoptic quality of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from focalnet.errors import ConfigError
from focalnet.losses import detection, segmentation
from focalnet.metrics.coco import CocoMetric, summary
from focalnet.metrics.instances import found_map, true_map
from focalnet.metrics.panoptic import PanopticQuality, PanopticResult
from focalnet.models import Detector, Mask2Former
from focalnet.results import Detections
from focalnet.samples import DetectionBatch
from focalnet.tasks.dense import DenseTask
from focalnet.tasks.detection_found import DetectionPredictions


class DetectionTask(DenseTask):
    """Trains a detector: Mask R-CNN, Cascade Mask R-CNN, ATSS or Sparse R-CNN; or Mask2Former to find objects."""

    network: Detector[Any, Any, Any] | Mask2Former
    network_type = (Detector, Mask2Former)
    kind = "detector"
    inspector = DetectionPredictions

    def configure_model(self) -> None:
        super().configure_model()
        if isinstance(self.network, Mask2Former):
            if not self.data.masks:
                raise ConfigError("Mask2Former finds objects by their masks: data.masks must be true")
            self.ask_for("instance")
            self.criterion: Any = segmentation.criterion(self.network.config)
        else:
            self.criterion = detection.criterion(self.network.config)

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        self.reseed(batch_idx)
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        return self.total(self._losses(images, batch), len(images))

    def _losses(self, images: Tensor, batch: DetectionBatch) -> Mapping[str, Tensor]:
        targets = batch["targets"]
        if isinstance(self.network, Mask2Former):
            outputs: Any = self.network.training_outputs(images)
            return cast("Mapping[str, Tensor]", self.criterion(outputs, [target.segments() for target in targets]))
        outputs = self.network.training_outputs(images, batch["sizes"], targets)
        return cast("Mapping[str, Tensor]", self.criterion(outputs, targets))

    def on_validation_epoch_start(self) -> None:
        samples, masks = self.data.samples["val"], self.finds_masks and self.data.masks
        self.metric = CocoMetric(samples.coco.to_coco(samples.images), masks=masks)
        self.quality = PanopticQuality(self.data.class_names, self.data.num_classes) if masks else None

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> dict[str, list[Detections]]:
        """Returns the objects found in each image, as ``found``."""
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        network: Any = self.trained
        find: Any = network.segment if isinstance(network, Mask2Former) else network.detect
        found: list[Detections] = find(images, batch["sizes"], batch["original_sizes"])
        self.metric.update(found, batch["image_ids"])
        if self.quality is not None:
            annotated = (self.data.samples["val"].annotated_masks(number) for number in batch["image_ids"])
            self.quality.update(map(found_map, found), (true_map(*objects) for objects in annotated))
        return {"found": found}

    def on_validation_epoch_end(self) -> None:
        metrics = [metric for metric in (self.metric, self.quality) if metric is not None]
        if self.trainer.world_size > 1:
            for metric in metrics:
                metric.gather()
        self.found = self.metric.compute()
        self.segmented: PanopticResult | None = None if self.quality is None else self.quality.compute()
        shown = {name: value for name, value in summary(self.found).items() if "_ar_" not in name}
        if self.segmented is not None:
            shown |= {name: value for name, value in self.segmented.summary().items() if name == "pq_things"}
        self.log_dict(shown, sync_dist=False)

    @property
    def finds_masks(self) -> bool:
        """Whether the network segments the objects it finds."""
        return isinstance(self.network, Mask2Former) or bool(getattr(self.network.config, "masks", False))
