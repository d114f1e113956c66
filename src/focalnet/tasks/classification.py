"""Image classification: cross entropy on (mixed) labels, top-1 and top-5."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.utils import ModelEmaV3
from torch.distributed.fsdp import FullyShardedDataParallel

from focalnet import zoo
from focalnet.data import ClassificationData
from focalnet.errors import ConfigError
from focalnet.models import Classifier
from focalnet.structures import Batch, ModelCard
from focalnet.tasks.mix import MixConfig
from focalnet.tasks.optim import OptimizerConfig, ScheduleConfig, build_optimizer, build_scheduler, parameter_groups


class ClassificationTask(pl.LightningModule):
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
        super().__init__()
        if (architecture is None) == (weights is None):
            raise ConfigError("give one of model.architecture (random weights) and model.weights (trained ones)")
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ConfigError(f"model.ema_decay={ema_decay} must be between 0 and 1, or null for no average")
        self.architecture, self.weights, self.options = architecture, weights, options or {}
        self.optimizer_config, self.schedule, self.mix = optimizer, schedule, mix
        self.label_smoothing, self.ema_decay, self.seed = label_smoothing, ema_decay, seed
        self.freeze_stages, self.grad_checkpointing, self.compile_network = freeze_stages, grad_checkpointing, compile
        self.average: ModelEmaV3 | None = None

    @property
    def trained(self) -> Classifier:
        """The network to validate and to keep: the moving average, where there is one."""
        network: Classifier = self.network if self.average is None else self.average.module
        return network

    def card(self, data: ClassificationData, training: str) -> ModelCard:
        """What travels with the trained weights; ``training`` is the second half of their name."""
        start = self.network.card  # of the weights it was finetuned from
        architecture = self.architecture or (start.name.partition(".")[0] if start else "focalnet")
        return ModelCard(
            name=f"{architecture}.{training}",
            class_names=data.class_names,
            preprocessing=data.preprocessing,
            licence=start.licence if start else None,
            source=f"finetuned from {start.name if start else self.weights}" if self.weights else None,
        )

    def configure_model(self) -> None:
        if hasattr(self, "network"):  # Lightning calls this again before a second stage
            return
        data = self._data()
        torch.manual_seed(self.seed)
        self.network = self._build(data.num_classes)
        self.network.patch_embed.to(memory_format=torch.channels_last)  # as the images; behind it all is (B, H, W, C)
        if self.freeze_stages is not None:
            self.network.freeze(self.freeze_stages)
        self.network.set_grad_checkpointing(self.grad_checkpointing)
        if self.ema_decay is not None:
            self.average = ModelEmaV3(self.network, decay=self.ema_decay, use_warmup=True).requires_grad_(False)
        self.parameter_groups = parameter_groups(self.network, self.optimizer_config)  # before sharding
        if self.compile_network:
            self.network.compile()
        self.mixer = self.mix.build(data.num_classes)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = build_optimizer(self.parameter_groups, self.optimizer_config)
        epochs = self.trainer.max_epochs or 1
        scheduler = build_scheduler(
            optimizer,
            self.optimizer_config,
            self.schedule,
            epochs=epochs,
            updates_per_epoch=max(int(self.trainer.estimated_stepping_batches) // epochs, 1),
            global_batch=self._data().batch_size * self.trainer.accumulate_grad_batches,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self._reseed(batch_idx)
        images, labels = batch["images"], batch["labels"]
        if self.mixer is not None:
            if len(images) % 2:
                raise ConfigError(f"mixup and cutmix need even batches, not of {len(images)} images: --data.batch_size")
            images, labels = self.mixer(images, labels)
        logits = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        self.log("train_loss_step", loss)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        self.log("learning_rate", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        whole = self.trainer.strategy.model
        if gradient_clip_val and isinstance(whole, FullyShardedDataParallel):
            whole.clip_grad_norm_(gradient_clip_val)  # Lightning leaves this to the module: only it sees all shards
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.network, step=self.trainer.global_step + 1)

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

    def _data(self) -> ClassificationData:
        data: ClassificationData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def _build(self, num_classes: int) -> Classifier:
        network: Classifier
        if self.architecture is not None:
            network = zoo.create_model(self.architecture, num_classes=num_classes, **self.options)
        else:
            network = zoo.load(str(self.weights), num_classes=num_classes, **self.options)
        return network.train()

    def _reseed(self, batch_idx: int) -> None:
        entropy = [self.seed, self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
