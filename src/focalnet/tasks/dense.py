"""What the tasks of all dense networks share: a backbone that may start from a classifier's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from torch import Tensor

from focalnet import zoo
from focalnet.errors import ConfigError
from focalnet.models.backbone import FocalNetTrunk
from focalnet.models.base import DenseModel
from focalnet.models.mask2former.config import Segmentation
from focalnet.tasks.base import Task
from focalnet.tasks.optim import OptimizerConfig


class DenseTask(Task):
    """Trains a network that finds something in an image; ``Task`` has the options that are not named here.

    Args:
        backbone_weights: with ``architecture``: a classifier's catalogue name or file to start the backbone from.
        optimizer: AdamW and its parameter groups.
        kwargs: those of ``Task``.
    """

    network: DenseModel[Any]

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
                f"model.backbone_weights goes with model.architecture; model.weights are of a whole {self.kind}"
            )
        self.backbone_weights = backbone_weights

    def build(self, num_classes: int) -> Any:
        network = super().build(num_classes)
        if self.backbone_weights is not None:
            start = zoo.load(self.backbone_weights, features_only=True, **asdict(network.backbone.config))
            network.backbone.load_state_dict(start.state_dict())
        return network

    def configure_model(self) -> None:
        super().configure_model()
        self.data.size_divisor = self.network.config.size_divisor  # loaders, which pad, are made after this

    def blank(self) -> DenseModel[Any]:
        return cast("DenseModel[Any]", self.network.config.build())

    def trunk(self) -> FocalNetTrunk:
        return self.network.backbone

    def ask_for(self, segments: Segmentation, num_things: int | None = None) -> None:
        """Makes a Mask2Former give such results, whatever it gave before: its weights are the same.

        Args:
            segments: the kind of results.
            num_things: so many of the first classes are objects; default: all.
        """
        for network in (self.network, self.trained):
            network.config = replace(network.config, segments=segments, num_things=num_things)

    def total(self, losses: Mapping[str, Tensor], images: int) -> Tensor:
        """The sum of the losses of a batch; all are logged."""
        loss = torch.stack(list(losses.values())).sum()
        self.log_dict({f"train_{name}_step": value.detach() for name, value in losses.items()})
        self.log_training(loss, images)
        return loss
