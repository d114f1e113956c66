"""Image classification: cross entropy on (mixed) labels, top-1 and top-5."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from focalnet import zoo
from focalnet.backbones import FocalNetTrunk
from focalnet.errors import ConfigError
from focalnet.models import Classifier
from focalnet.structures import Batch
from focalnet.tasks.base import Task
from focalnet.tasks.mix import MixConfig
from focalnet.tasks.optim import OptimizerConfig, ScheduleConfig


class ClassificationTask(Task):
    """Trains a ``Classifier``. The classes come from the data, so the network is built when the data is known.

    Everything random in a training step (mixing, drop path) is a function of seed, epoch, batch and process
    alone: a resumed run repeats what the uninterrupted one would have done.

    Args:
        architecture: one of ``focalnet models``, for random initial weights.
        weights: start from these instead: a catalogue name or a file. Give one of the two.
        options: fields of ``FocalNetConfig`` to change, e.g. ``{"drop_path_rate": 0.2}``.
        optimizer: AdamW and its parameter groups.
        schedule: learning rate per update.
        mix: mixup and cutmix; both are off by default.
        label_smoothing: share of a label that is spread over all classes, in [0, 1).
        ema_decay: decay per update of a moving average of the weights, which is then what is validated and saved.
        freeze_stages: stem and this many stages keep their initial weights; null for none.
        grad_checkpointing: trade time for memory.
        compile: pass the network through ``torch.compile``.
        seed: of initial weights, mixing and drop path; linked to ``seed_everything``.
    """

    network: Classifier

    def __init__(
        self,
        architecture: str | None = None,
        weights: str | None = None,
        options: dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        mix: MixConfig = MixConfig(),  # noqa: B008
        label_smoothing: float = 0.0,
        ema_decay: float | None = None,
        freeze_stages: int | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            architecture=architecture,
            weights=weights,
            options=options,
            optimizer=optimizer,
            schedule=schedule,
            ema_decay=ema_decay,
            freeze_stages=freeze_stages,
            grad_checkpointing=grad_checkpointing,
            compile=compile,
            seed=seed,
        )
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.mix, self.label_smoothing = mix, label_smoothing

    def build(self, num_classes: int) -> Classifier:
        network: Classifier
        if self.architecture is not None:
            network = zoo.create_model(self.architecture, num_classes=num_classes, **self.options)
        else:
            network = zoo.load(str(self.weights), num_classes=num_classes, **self.options)
        return network.train()

    def blank(self) -> Classifier:
        return self.network.classifier_config.build()

    def trunk(self) -> FocalNetTrunk:
        return self.network

    def configure_model(self) -> None:
        super().configure_model()
        self.mixer = self.mix.build(self.network.num_classes)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
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

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Returns logits ``(B, num_classes)``."""
        images, labels = batch["images"], batch["labels"]
        logits: torch.Tensor = self.trained(images.contiguous(memory_format=torch.channels_last)).float()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        metrics = {"val_loss": F.cross_entropy(logits, labels), "top1": 100.0 * best[:, 0].float().mean()}
        if logits.shape[1] > 5:
            metrics["top5"] = 100.0 * best.any(1).float().mean()
        self.log_dict(metrics, batch_size=len(images), sync_dist=True)
        return logits
