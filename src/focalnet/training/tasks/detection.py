"""Detection and instance segmentation: a network's own losses, COCO's average precision, panoptic quality of masks."""

from __future__ import annotations

import logging

from focalnet import registry, zoo
from focalnet.errors import ConfigError
from focalnet.metrics.coco import CocoEvaluator
from focalnet.training.tasks.base import DenseTask

logger = logging.getLogger(__name__)


class DetectionTask(DenseTask):
    """Trains a detector, or Mask2Former to find objects."""

    name = "detection"
    evaluator_class = CocoEvaluator

    def configure_model(self) -> None:
        given = hasattr(self, "network")  # to be measured, or Lightning calls this again
        if not given and not self.data.masks and "masks" not in self.options and self._can_leave_out_masks():
            logger.warning("the data has boxes only, so the network is trained without masks (model.options.masks)")
            self.options = {**self.options, "masks": False}
        super().configure_model()
        if self.trainer.training and self.network.config.learns_masks and not self.data.masks:
            raise ConfigError(
                f"a {type(self.network).__name__} learns masks: data.masks must be true, and objects need outlines"
            )

    def _can_leave_out_masks(self) -> bool:
        """Whether the network learns masks, and has an option for boxes only."""
        if self.architecture is not None:
            config = registry.configure(self.architecture, **self.options)
        else:
            config = zoo.load(str(self.weights), **self.options).config
        return config.learns_masks and hasattr(config, "masks")

    def build_evaluator(self) -> CocoEvaluator:
        masks = self.network.config.learns_masks and self.data.masks
        split = "test" if self.trainer.testing else "val"
        return CocoEvaluator(self.data, examples=self.examples, masks=masks, split=split)
