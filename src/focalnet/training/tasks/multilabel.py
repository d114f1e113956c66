"""Images that can have several classes: binary cross entropy of each class, mean average precision and F1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.data import Mixup

from focalnet.errors import ConfigError
from focalnet.metrics.classification import stacked_logits
from focalnet.metrics.multilabel import MultiLabelEvaluator
from focalnet.samples import Batch
from focalnet.training.tasks.base import Task
from focalnet.training.tasks.classification import MixConfig, check_even


def mixed(mixer: Mixup, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch mixed by timm's mixer, whose targets are mixed by the same shares of its images.

    Args:
        mixer: for any number of classes.
        images: an even number, ``(B, 3, H, W)``; they are changed in place.
        targets: ``(B, N)``, in [0, 1].
    """
    mixer.num_classes = len(images)  # each image is a class of its own: "labels" are its shares of all images
    images, shares = mixer(images, torch.arange(len(images), device=images.device))
    return images, shares.to(targets) @ targets


class MultiLabelTask(Task):
    """Trains a ``Classifier`` whose images can have several classes; ``Task`` has the options not named here.

    Args:
        mix: mixup and cutmix; both are off by default. The classes of both images count by their share of the mix.
        class_weights: how much an image with each class counts in the loss of that class, in the order of the classes
            (``pos_weight``); ``"balanced"`` for the number of training images without the class over those with it;
            null for equal weights.
        kwargs: those of ``Task``.
    """

    name = "multilabel"
    evaluator_class = MultiLabelEvaluator

    def __init__(
        self,
        *,
        mix: MixConfig = MixConfig(),  # noqa: B008 (frozen)
        class_weights: Literal["balanced"] | list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mix = mix
        if isinstance(class_weights, list) and not min(class_weights, default=-1) > 0:
            raise ConfigError(f"model.class_weights={class_weights} must be above 0")
        self.class_weights = class_weights

    def configure_model(self) -> None:
        super().configure_model()
        self.mixer = self.mix.build(self.network.config.num_classes)
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
        if self.mixer is not None and self.mix.mixes(self.current_epoch, self.trainer.max_epochs):
            check_even(batch.images)
            images, targets = mixed(self.mixer, batch.images, cast("torch.Tensor", batch.targets))
            batch = replace(batch, images=images, targets=cast("Any", targets))
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
