"""Image classification: cross entropy on (mixed) labels, top-1 and top-5."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from focalnet.errors import ConfigError
from focalnet.models import Classifier
from focalnet.models.backbone import FocalNetTrunk
from focalnet.samples import ClassificationBatch
from focalnet.tasks.base import Task
from focalnet.tasks.callbacks import Predictions
from focalnet.tasks.mix import MixConfig


class ClassificationTask(Task):
    """Trains a ``Classifier``; ``Task`` has the options that are not named here.

    Args:
        mix: mixup and cutmix; both are off by default.
        label_smoothing: share of a label that is spread over all classes, in [0, 1).
        kwargs: those of ``Task``.
    """

    network: Classifier
    network_type = Classifier
    kind = "classifier"
    inspector = Predictions

    def __init__(self, *, mix: MixConfig = MixConfig(), label_smoothing: float = 0.0, **kwargs: Any) -> None:  # noqa: B008
        super().__init__(**kwargs)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.mix, self.label_smoothing = mix, label_smoothing

    def blank(self) -> Classifier:
        return self.network.classifier_config.build()

    def trunk(self) -> FocalNetTrunk:
        return self.network

    def configure_model(self) -> None:
        super().configure_model()
        self.mixer = self.mix.build(self.network.num_classes)

    def training_step(self, batch: ClassificationBatch, batch_idx: int) -> torch.Tensor:
        self.reseed(batch_idx)
        images, labels = batch["images"], batch["labels"]
        if self.mixer is not None and self._mixes_now():
            if len(images) % 2:
                raise ConfigError(f"mixup and cutmix need even batches, not of {len(images)} images: --data.batch_size")
            images, labels = self.mixer(images, labels)
        logits = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        self.log_training(loss, len(images))
        return loss

    def _mixes_now(self) -> bool:
        return self.current_epoch < (self.trainer.max_epochs or 0) - self.mix.clean_epochs

    def validation_step(self, batch: ClassificationBatch, batch_idx: int) -> torch.Tensor:
        """Returns logits ``(B, num_classes)``."""
        images, labels = batch["images"], batch["labels"]
        logits: torch.Tensor = self.trained(images.contiguous(memory_format=torch.channels_last)).float()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        metrics = {"val_loss": F.cross_entropy(logits, labels), "top1": 100.0 * best[:, 0].float().mean()}
        if logits.shape[1] > 5:
            metrics["top5"] = 100.0 * best.any(1).float().mean()
        self.log_dict(metrics, batch_size=len(images), sync_dist=True)
        return logits
