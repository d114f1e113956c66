"""What the tasks of all dense networks share: a backbone that may start from a classifier's weights."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet import zoo
from focalnet.errors import ConfigError
from focalnet.models.base import Model
from focalnet.tasks.base import Task
from focalnet.tasks.optim import OptimizerConfig


class DenseTask(Task):
    """Trains a network for dense prediction; ``Task`` has the options that are not named here.

    Args:
        backbone_weights: with ``architecture``: a classifier's catalogue name or file to start the backbone from.
        optimizer: AdamW and its parameter groups.
        kwargs: those of ``Task``.
    """

    def __init__(
        self,
        *,
        backbone_weights: str | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, reference_batch=16),  # noqa: B008 (frozen)
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **kwargs)
        if backbone_weights is not None and self.architecture is None:
            raise ConfigError(
                "model.backbone_weights goes with model.architecture; model.weights are of a whole network"
            )
        self.backbone_weights = backbone_weights

    def build(self, num_classes: int, num_things: int | None = None) -> Model[Any, Any]:
        network = super().build(num_classes, num_things)
        if self.backbone_weights is not None:
            start = zoo.load(self.backbone_weights, features_only=True, **asdict(network.config.backbone))
            network.backbone.load_state_dict(start.state_dict())
        return network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.reseed(batch_idx)
        batch.images = padded(batch.images, self.network.config.size_divisor)
        return self.total(self.network.loss(batch), len(batch))


def padded(images_BCHW: Tensor, divisor: int) -> Tensor:
    """Zeros at the right and below, so that the sides are multiples of a divisor; in the memory networks like best."""
    height, width = (math.ceil(side / divisor) * divisor - side for side in images_BCHW.shape[-2:])
    return F.pad(images_BCHW, (0, width, 0, height)).contiguous(memory_format=torch.channels_last)
