"""Image classification: cross entropy on (mixed) labels, top-1 and top-5.

Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) mix whole batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.data import Mixup

from focalnet.errors import ConfigError
from focalnet.metrics.classification import ClassificationEvaluator, stacked_logits
from focalnet.samples import Batch
from focalnet.training.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Which batches are mixed, and how strongly; timm does it.

    Args:
        mixup: alpha of the Beta distribution of mixup; 0 turns it off.
        cutmix: alpha of the Beta distribution of cutmix; 0 turns it off.
        probability: of mixing a batch at all.
        switch_probability: of cutmix rather than mixup, when both are on.
        clean_epochs: the last so many epochs of a run are not mixed, so that it ends on images as they are
            (He et al., arXiv 1909.09148).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5
    clean_epochs: int = 0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "clean_epochs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 (off) or more")
        for name in ("probability", "switch_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be a probability, 0 to 1")

    def build(self, num_classes: int) -> Mixup | None:
        """Returns timm's mixer, or None when both are off."""
        if self.mixup == 0 and self.cutmix == 0:
            return None
        return Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=self.probability,
            switch_prob=self.switch_probability,
            label_smoothing=0.0,  # the loss smooths, mixed or not
            num_classes=num_classes,
        )


class ClassificationTask(Task):
    """Trains a ``Classifier``; ``Task`` has the options that are not named here.

    Args:
        mix: mixup and cutmix; both are off by default.
        label_smoothing: share of a label that is spread over all classes, in [0, 1).
        kwargs: those of ``Task``.
    """

    name = "classification"
    evaluator_class = ClassificationEvaluator

    def __init__(self, *, mix: MixConfig = MixConfig(), label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.mix, self.label_smoothing = mix, label_smoothing

    def configure_model(self) -> None:
        super().configure_model()
        self.mixer = self.mix.build(self.network.config.num_classes)

    def training_step(self, batch: Batch[int], batch_idx: int) -> torch.Tensor:
        self.reseed(batch_idx)
        images, targets = batch.images, cast("torch.Tensor", batch.targets)
        if self.mixer is not None and self._mixes_now():
            if len(images) % 2:
                raise ConfigError(f"mixup and cutmix need even batches, not of {len(images)} images: --data.batch_size")
            images, targets = self.mixer(images, targets)
        batch = replace(batch, images=images, targets=cast("Any", self._smoothed(targets)))
        return self.total(self.network.loss(batch), len(images))

    def _smoothed(self, targets: torch.Tensor) -> torch.Tensor:
        """Label smoothing: shares of each class ``(B, num_classes)``; without it, the targets as they are."""
        if not self.label_smoothing:
            return targets
        classes = self.network.config.num_classes
        shares: torch.Tensor = targets if targets.ndim == 2 else F.one_hot(targets, classes).float()
        smoothed: torch.Tensor = shares * (1 - self.label_smoothing) + self.label_smoothing / classes
        return smoothed

    def _mixes_now(self) -> bool:
        return self.current_epoch < (self.trainer.max_epochs or 0) - self.mix.clean_epochs

    def validation_step(self, batch: Batch[int], batch_idx: int) -> None:
        images = batch.images.contiguous(memory_format=torch.channels_last)
        results = self.trained.predict(images, batch.sizes, batch.original_sizes)
        loss = F.cross_entropy(stacked_logits(results), cast("torch.Tensor", batch.targets))
        self.log("val_loss", loss, batch_size=len(images), sync_dist=True)
        self.evaluator.update(results, batch)
