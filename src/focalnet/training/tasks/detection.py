"""Detection and instance segmentation: a network's own losses, COCO's average precision, panoptic quality of masks."""

from __future__ import annotations

from focalnet.errors import ConfigError
from focalnet.metrics.coco import CocoEvaluator
from focalnet.training.tasks.base import DenseTask


class DetectionTask(DenseTask):
    """Trains a detector, or Mask2Former to find objects."""

    name = "detection"
    evaluator_class = CocoEvaluator

    def configure_model(self) -> None:
        super().configure_model()
        if self.trainer.training and self.network.config.learns_masks and not self.data.masks:
            raise ConfigError(f"a {type(self.network).__name__} learns masks: data.masks must be true")

    def build_evaluator(self) -> CocoEvaluator:
        masks = self.network.config.learns_masks and self.data.masks
        return CocoEvaluator(self.data, examples=self.examples, masks=masks)
