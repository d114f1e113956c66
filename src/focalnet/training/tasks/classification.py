"""Image classification: cross entropy on (mixed) labels, top-1 and top-5.

Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) mix whole batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import nn

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

    def mixes(self, epoch: int, max_epochs: int | None) -> bool:
        """Whether batches of an epoch are mixed, counted from 0."""
        return epoch < (max_epochs or 0) - self.clean_epochs

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


def check_even(images: torch.Tensor) -> None:
    """Raises ConfigError for a batch whose images cannot be mixed in pairs."""
    if len(images) % 2:
        raise ConfigError(f"mixup and cutmix need even batches, not of {len(images)} images: --data.batch_size")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """A teacher whose predictions are learned beside the labels (Hinton et al., arXiv 1503.02531).

    Args:
        teacher: name of a timm model, with as many classes as the data.
        weights: file of its weights; null for those that timm downloads.
        share: of the loss that compares with the teacher, in (0, 1]; the rest is of the labels.
        temperature: that both divide their logits by, above 0.
    """

    teacher: str
    weights: str | None = None
    share: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.temperature <= 0:
            raise ConfigError(
                f"distillation: share={self.share} must be in (0, 1], temperature={self.temperature} above 0"
            )

    def build(self, num_classes: int) -> nn.Module:
        """The teacher, which does not learn.

        Raises:
            ConfigError: timm has no such model, or its weights do not fit.
        """
        try:
            model: nn.Module = timm.create_model(
                self.teacher,
                pretrained=self.weights is None,
                num_classes=num_classes,
                checkpoint_path=self.weights or "",
            )
        except Exception as error:  # of timm, the hub or the file
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"distillation.teacher={self.teacher} cannot be loaded: {reason}") from error
        return model.eval().requires_grad_(False)


def weighted_cross_entropy(logits: torch.Tensor, shares: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross entropy whose classes count differently, divided by the weights that the batch has in all.

    Args:
        logits: ``(B, N)``.
        shares: of each class, ``(B, N)``.
        weights: of each class, ``(N,)``.
    """
    weighted = shares * weights
    return -(weighted * logits.log_softmax(1)).sum() / weighted.sum()


def distillation_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence of the softened predictions from the teacher's, a mean over images, times temperature squared.

    Args:
        logits: of the student, ``(B, N)``.
        teacher_logits: ``(B, N)``.
        temperature: that both are divided by.
    """
    student, teacher = (values / temperature for values in (logits, teacher_logits))
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean")
    return divergence * temperature**2


class ClassificationTask(Task):
    """Trains a ``Classifier``; ``Task`` has the options that are not named here.

    Args:
        mix: mixup and cutmix; both are off by default.
        label_smoothing: share of a label that is spread over all classes, in [0, 1); or one for each class.
        class_weights: how much each class counts in the loss, in the order of the classes; ``"balanced"`` for the
            inverse of their number of training images; null for equal weights.
        distillation: a teacher to learn from; null for none.
        kwargs: those of ``Task``.
    """

    name = "classification"
    evaluator_class = ClassificationEvaluator

    def __init__(
        self,
        *,
        mix: MixConfig = MixConfig(),
        label_smoothing: float | list[float] = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        distillation: DistillationConfig | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        each = label_smoothing if isinstance(label_smoothing, list) else [label_smoothing]
        if not all(0 <= value < 1 for value in each):
            raise ConfigError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        if isinstance(class_weights, list) and not (min(class_weights, default=-1) >= 0 and sum(class_weights) > 0):
            raise ConfigError(f"model.class_weights={class_weights} must not be negative, and not all 0")
        self.mix, self.label_smoothing = mix, label_smoothing
        self.class_weights, self.distillation = class_weights, distillation
        self._teacher: list[nn.Module] = []  # in a list: not a part of the task, nor of its checkpoints

    def configure_model(self) -> None:
        super().configure_model()
        classes = self.network.config.num_classes
        self.mixer = self.mix.build(classes)
        if not self.trainer.training:
            return
        for name in ("label_smoothing", "class_weights"):
            given = getattr(self, name)
            if isinstance(given, list) and len(given) != classes:
                raise ConfigError(f"model.{name} has {len(given)} values, the data has {classes} classes")
        self._weights = self._class_weights()
        if self.distillation is not None and not self._teacher:
            self._teacher.append(self.distillation.build(classes))

    def _class_weights(self) -> torch.Tensor | None:
        """``(num_classes,)``, with a mean of 1 over the training images if balanced; None for equal weights."""
        if self.class_weights != "balanced":
            return None if self.class_weights is None else torch.tensor(self.class_weights)
        counts = self.data.class_counts()
        if counts is None or not (counts > 0).all():
            why = "is not for WebDataset shards" if counts is None else "needs training images of every class"
            raise ConfigError(f"model.class_weights=balanced {why}: give a list of weights")
        balanced: torch.Tensor = counts.sum() / (len(counts) * counts)
        return balanced

    def training_step(self, batch: Batch[int], batch_idx: int) -> torch.Tensor:
        self.reseed(batch_idx)
        images, targets = batch.images, cast("torch.Tensor", batch.targets)
        if self.mixer is not None and self.mix.mixes(self.current_epoch, self.trainer.max_epochs):
            check_even(images)
            images, targets = self.mixer(images, targets)
        batch = replace(batch, images=images, targets=cast("Any", self._smoothed(targets)))
        if self._weights is None and self.distillation is None:
            return self.total(self.network.loss(batch), len(images))
        return self.total(self._losses(images, cast("torch.Tensor", batch.targets)), len(images))

    def _losses(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms of the loss with class weights or a teacher; each has its share."""
        images = images.contiguous(memory_format=torch.channels_last)
        logits = self.network(images).float()
        if self._weights is None:
            loss = F.cross_entropy(logits, targets)
        else:
            shares = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1]).float()
            loss = weighted_cross_entropy(logits, shares, self._weights.to(logits))
        if self.distillation is None:
            return {"loss": loss}
        with torch.no_grad():
            teacher_logits = self._teacher[0].to(images.device)(images).float()
        distilled = distillation_loss(logits, teacher_logits, self.distillation.temperature)
        share = self.distillation.share
        return {"label_loss": (1 - share) * loss, "distillation_loss": share * distilled}

    def _smoothed(self, targets: torch.Tensor) -> torch.Tensor:
        """Label smoothing: shares of each class ``(B, num_classes)``; without it, the targets as they are."""
        each = torch.as_tensor(self.label_smoothing, device=targets.device)
        if not each.any():
            return targets
        classes = self.network.config.num_classes
        shares: torch.Tensor = targets if targets.ndim == 2 else F.one_hot(targets, classes).float()
        if isinstance(self.label_smoothing, list):
            spread: torch.Tensor = shares * (1 - each) + (shares * each).sum(1, keepdim=True) / classes
            return spread
        smoothed: torch.Tensor = shares * (1 - self.label_smoothing) + self.label_smoothing / classes
        return smoothed

    def validation_step(self, batch: Batch[int], batch_idx: int) -> None:
        images = batch.images.contiguous(memory_format=torch.channels_last)
        results = self.trained.predict(images, batch.sizes, batch.original_sizes)
        loss = F.cross_entropy(stacked_logits(results), cast("torch.Tensor", batch.targets))
        self.log("val_loss", loss, batch_size=len(images), sync_dist=True)
        self.evaluator.update(results, batch)
