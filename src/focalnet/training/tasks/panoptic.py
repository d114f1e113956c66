"""Panoptic segmentation: a network's own losses, panoptic quality."""

from __future__ import annotations

from typing import Any

from focalnet.metrics.panoptic import PanopticEvaluator
from focalnet.training.tasks.base import DenseTask


class PanopticTask(DenseTask):
    """Trains a network that finds objects and stuff, so that each pixel belongs to one of them."""

    name = "panoptic"
    evaluator_class = PanopticEvaluator

    def num_things(self, data: Any) -> int:
        return int(data.num_things)
