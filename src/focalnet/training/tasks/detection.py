"""Detection and instance segmentation: a network's own losses, COCO's average precision, panoptic quality of masks."""

from __future__ import annotations

import torch

from focalnet.errors import ConfigError
from focalnet.metrics.coco import CocoMetric, summary
from focalnet.metrics.instances import found_map, true_map
from focalnet.metrics.panoptic import PanopticQuality, PanopticResult
from focalnet.results import Detections
from focalnet.samples import Batch, ObjectTarget
from focalnet.training.detection_found import DetectionPredictions
from focalnet.training.tasks.base import DenseTask


class DetectionTask(DenseTask):
    """Trains a detector: Mask R-CNN, Cascade Mask R-CNN, ATSS or Sparse R-CNN; or Mask2Former to find objects."""

    name = "detection"
    inspector = DetectionPredictions

    def configure_model(self) -> None:
        super().configure_model()
        if self.trainer.training and self.network.config.learns_masks and not self.data.masks:
            raise ConfigError(f"a {type(self.network).__name__} learns masks: data.masks must be true")

    def on_validation_epoch_start(self) -> None:
        samples, masks = self.data.samples["val"], self.network.config.learns_masks and self.data.masks
        self.metric = CocoMetric(samples.coco.to_coco(samples.images), masks=masks)
        self.quality = PanopticQuality(self.data.class_names, self.data.num_classes) if masks else None

    def validation_step(self, batch: Batch[ObjectTarget], batch_idx: int) -> dict[str, list[Detections]]:
        """Returns the objects found in each image, as ``found``."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        found: list[Detections] = self.trained.predict(images, batch.sizes, batch.original_sizes)
        ids = [info.image_id for info in batch.infos]
        self.metric.update(found, ids)
        if self.quality is not None:
            annotated = (self.data.samples["val"].annotated_masks(number) for number in ids)
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
