"""Images that can have several classes: binary cross entropy of each class, mean average precision and F1."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F

from focalnet.errors import ConfigError
from focalnet.metrics.classification import stacked_logits
from focalnet.metrics.multilabel import MultiLabelEvaluator
from focalnet.samples import Batch
from focalnet.training.tasks.base import Task


class MultiLabelTask(Task):
    """Trains a ``Classifier`` whose images can have several classes; ``Task`` has the options not named here.

    Args:
        class_weights: how much an image with each class counts in the loss of that class, in the order of the classes
            (``pos_weight``); ``"balanced"`` for the number of training images without the class over those with it;
            null for equal weights.
        kwargs: those of ``Task``.
    """

    name = "multilabel"
    evaluator_class = MultiLabelEvaluator

    def __init__(self, *, class_weights: Literal["balanced"] | list[float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(class_weights, list) and not min(class_weights, default=-1) > 0:
            raise ConfigError(f"model.class_weights={class_weights} must be above 0")
        self.class_weights = class_weights

    def configure_model(self) -> None:
        super().configure_model()
        if not self.trainer.training:
            return
        classes = self.network.config.num_classes
        if isinstance(self.class_weights, list) and len(self.class_weights) != classes:
            raise ConfigError(
                f"model.class_weights has {len(self.class_weights)} values, the data has {classes} classes"
            )
        self._weights = self._positive_weights()

    def _positive_weights(self) -> torch.Tensor | None:
        """``(num_classes,)``; None for equal weights."""
        if self.class_weights != "balanced":
            return None if self.class_weights is None else torch.tensor(self.class_weights)
        counts, images = self.data.label_counts()
        if not ((counts > 0) & (counts < images)).all():
            raise ConfigError(
                "model.class_weights=balanced needs training images with and without each class: give a list of weights"
            )
        weights: torch.Tensor = (images - counts) / counts
        return weights

    def training_step(self, batch: Batch[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.reseed(batch_idx)
        if self._weights is None:
            return self.total(self.network.loss(batch), len(batch))
        logits = self.network(batch.images.contiguous(memory_format=torch.channels_last)).float()
        weights = self._weights.to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets.to(logits), pos_weight=weights)
        return self.total({"loss": loss}, len(batch))

    def validation_step(self, batch: Batch[torch.Tensor], batch_idx: int) -> None:
        images = batch.images.contiguous(memory_format=torch.channels_last)
        results = self.trained.predict(images, batch.sizes, batch.original_sizes)
        targets = cast("torch.Tensor", batch.targets)
        loss = F.binary_cross_entropy_with_logits(stacked_logits(results), targets.to(results[0].logits.device))
        self.log("val_loss", loss, batch_size=len(images), sync_dist=True)
        self.evaluator.update(results, batch)
