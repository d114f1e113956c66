"""What all tasks share: how a network is started, optimised, averaged and made repeatable."""

from __future__ import annotations

import fnmatch
import math
import random
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from focalnet import zoo
from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import ConfigError, did_you_mean
from focalnet.metrics.base import Evaluator, Metric
from focalnet.models.base import Model, TaskName
from focalnet.samples import Batch
from focalnet.training.lora import add_adapters
from focalnet.training.optimizer import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    build_scheduler,
    parameter_groups,
)
from focalnet.weights.checkpoint import HEADER, describe


class Data(Protocol):
    """What a task must know of its data, after ``setup``."""

    batch_size: int
    class_order: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def category_ids(self) -> tuple[int | str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    def setup(self, stage: str) -> None: ...

    def has_test_split(self) -> bool: ...


class Task(pl.LightningModule, ABC):
    """Trains a network whose classes come from the data: it is built when the data is known.

    Everything random in a training step is a function of seed, epoch, batch and process alone: a resumed run
    repeats what the uninterrupted one would have done.

    Args:
        architecture: one of ``focalnet models``, for random initial weights.
        weights: start from these instead: a catalogue name or a file; what names the classes is new where their
            number differs. Give one of the two.
        options: of the network, to change, e.g. ``{"drop_path_rate": 0.2}``.
        optimizer: AdamW and its parameter groups.
        schedule: learning rate per update.
        ema_decay: decay per update of a moving average of the weights, which is then what is validated and saved.
        freeze_stages: stem and this many stages of the backbone keep their initial weights; null for none.
        freeze: parameters that keep their initial weights, by name; ``*`` stands for anything, as in ``"layers.0.*"``.
        lora_rank: learn only low-rank adapters of this rank in the blocks of the backbone (peft's), and what is above
            it; they are merged into the weights that are kept. Null for none.
        grad_checkpointing: trade time for memory.
        keep: whether ``model.safetensors`` gets the weights of the best validation, by the headline metric of the task,
            or those of the last update; without any validation, always the last.
        compile: train through ``torch.compile``: a classifier whole, of other networks the backbone, which is most of
            their work; the sizes of what neck and heads see change with every batch. State-dict names stay.
        seed: of everything random; linked to ``seed_everything``.
    """

    network: Model[Any, Any]
    name: ClassVar[TaskName]
    evaluator_class: ClassVar[type[Evaluator]]
    evaluator: Evaluator

    def __init__(
        self,
        *,
        architecture: str | None = None,
        weights: str | None = None,
        options: dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        ema_decay: float | None = None,
        freeze_stages: int | None = None,
        freeze: list[str] | None = None,
        lora_rank: int | None = None,
        grad_checkpointing: bool = False,
        keep: Literal["best", "last"] = "best",
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (architecture is None) == (weights is None):
            raise ConfigError("give one of model.architecture (random weights) and model.weights (trained ones)")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ConfigError(f"model.ema_decay={ema_decay} must be between 0 and 1, or null for no average")
        self.architecture, self.weights, self.options = architecture, weights, options or {}
        self.optimizer_config, self.schedule, self.ema_decay, self.seed = optimizer, schedule, ema_decay, seed
        self.frozen_names, self.lora_rank = freeze or [], lora_rank
        self.freeze_stages, self.grad_checkpointing, self.compile_network = freeze_stages, grad_checkpointing, compile
        self.keep: Literal["best", "last"] = keep
        self.max_steps: int | None = None  # of the run, which may end before its last epoch
        self.average: ModelEmaV3 | None = None
        self.examples = False  # whether validation keeps what a report shows
        self.records = False  # whether it keeps a row of a table for each prediction
        self.metrics: list[Metric] = []  # of the last validation
        self.loss_sum, self.images_trained = torch.zeros(()), 0  # of this epoch and process so far
        self.learning_rate = 0.0  # of the last update

    def build(self, num_classes: int, num_things: int | None = None) -> Model[Any, Any]:
        """The network with its initial weights, which gives what this task measures.

        Args:
            num_classes: of the data.
            num_things: so many of the first classes are objects, the others stuff; None where all are.

        Raises:
            ConfigError: a network that cannot do the task.
        """
        wanted = {"num_classes": num_classes, "task": self.name, "num_things": num_things, **self.options}
        network: Model[Any, Any]
        if self.architecture is not None:
            network = zoo.create_model(self.architecture, **wanted)
        else:
            network = zoo.load(str(self.weights), **wanted)
        return network.train()

    def blank(self) -> Model[Any, Any]:
        """A network of the same shape as the task's, to be filled with its weights."""
        network: Model[Any, Any] = self.network.config.build()
        return network

    @property
    def trained(self) -> Any:
        """The network to validate and to keep: the moving average, where there is one."""
        return self.network if self.average is None else self.average.module

    @property
    def trained_prefix(self) -> str:
        """What the names of ``trained``'s tensors start with in the state dict of the task."""
        return "network." if self.average is None else "average.module."

    def card(self, data: Data, training: str) -> ModelCard:
        """What travels with the trained weights; ``training`` is the second half of their name."""
        start = self.network.card  # of the weights it was finetuned from
        architecture = self.architecture or (start.name.partition(".")[0] if start else "focalnet")
        return ModelCard(
            name=f"{architecture}.{training}",
            class_names=data.class_names,
            category_ids=data.category_ids,
            preprocessing=data.preprocessing,
            licence=start.licence if start else None,
            source=f"finetuned from {start.name if start else self.weights}" if self.weights else None,
        )

    def configure_model(self) -> None:
        given = hasattr(self, "network")  # to be measured, or Lightning calls this again before a second stage
        if not given:
            torch.manual_seed(self.seed)
            self.network = self.build(self.data.num_classes, self.num_things(self.data))
        self.data.size_divisor = self.network.config.size_divisor  # loaders, which pad, are made after this
        if given:
            return
        backbone = self.network.backbone
        backbone.patch_embed.to(memory_format=torch.channels_last)  # as the images; behind it all is (B, H, W, C)
        if self.freeze_stages is not None:
            backbone.freeze(self.freeze_stages)
        if self.lora_rank is not None:
            add_adapters(self.network, self.lora_rank)
        freeze_by_name(self.network, self.frozen_names)
        self.network.set_grad_checkpointing(self.grad_checkpointing)
        if self.ema_decay is not None:
            self.average = ModelEmaV3(self.network, decay=self.ema_decay, use_warmup=True).requires_grad_(False)
        self.parameter_groups = parameter_groups(self.network, self.optimizer_config)  # before sharding
        if self.compile_network:
            backbone.compile()  # in place; a classifier is its own backbone, others call theirs in training

    def num_things(self, data: Any) -> int:
        """So many of the first classes of the data are objects, the others stuff."""
        return int(data.num_classes)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = build_optimizer(self.parameter_groups, self.optimizer_config)
        epochs = self.trainer.max_epochs or 1
        scheduler = build_scheduler(
            optimizer,
            self.optimizer_config,
            self.schedule,
            epochs=epochs,
            updates_per_epoch=max(int(self.trainer.estimated_stepping_batches) // epochs, 1),
            global_batch=self.data.batch_size * self.trainer.accumulate_grad_batches,
            max_updates=self.max_steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

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

    def build_evaluator(self) -> Evaluator:
        """An evaluator for one validation."""
        return self.evaluator_class(self.data, examples=self.examples)

    def on_validation_epoch_start(self) -> None:
        self.evaluator = self.build_evaluator()
        self.evaluator.rows = [] if self.records else None

    def validation_step(self, batch: Batch[Any], batch_idx: int) -> None:
        images = batch.images.contiguous(memory_format=torch.channels_last)
        self.evaluator.update(self.trained.predict(images, batch.sizes, batch.original_sizes), batch)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Batch[Any], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            self.evaluator.gather()
        self.metrics = self.evaluator.compute()
        self.log_dict({metric.name: metric.value for metric in self.metrics}, sync_dist=False)

    @property
    def data(self) -> Any:
        """The run's data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def total(self, losses: Mapping[str, torch.Tensor], images: int) -> torch.Tensor:
        """The sum of the terms of a batch; all are logged."""
        if len(losses) > 1:
            self.log_dict({f"train_{name}_step": value.detach() for name, value in losses.items()})
        loss = torch.stack(list(losses.values())).sum()
        self.log_training(loss, images)
        return loss

    def log_training(self, loss: torch.Tensor, images: int) -> None:
        """Logs the loss and the learning rate by step, and counts the loss for the epoch."""
        self.loss_sum = self.loss_sum + loss.detach().float() * images
        self.images_trained += images
        self.learning_rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        self.log("train_loss_step", loss)
        self.log("learning_rate", self.learning_rate)

    def on_train_epoch_start(self) -> None:
        self.loss_sum, self.images_trained = torch.zeros(()), 0

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", self.epoch_figures()["train_loss"])

    def epoch_figures(self) -> dict[str, Tensor]:
        """``train_loss``, the mean over the epoch's images so far of all processes, and ``learning_rate``."""
        loss_sum, images = self._over_processes()
        return {"train_loss": loss_sum / images, "learning_rate": torch.tensor(self.learning_rate)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps configuration and card beside the state of a run, so that ``focalnet.load`` reads its last.ckpt."""
        card = self.card(self.data, Path(self.trainer.default_root_dir).name)
        checkpoint[HEADER] = describe(self.network.config, card)
        loss_sum, images = self._over_processes()
        checkpoint["epoch_so_far"] = {
            "loss_sum": loss_sum.cpu(),
            "images": int(images),
            "learning_rate": self.learning_rate,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (so_far := checkpoint.get("epoch_so_far")) is None:
            return  # of an earlier version, which wrote at the end of epochs
        self.learning_rate = so_far["learning_rate"]
        if self.global_rank == 0:  # it speaks for all
            self.loss_sum, self.images_trained = so_far["loss_sum"], so_far["images"]

    def _over_processes(self) -> tuple[Tensor, Tensor]:
        """The sum of the losses and the number of images, of all processes."""
        sums = (self.loss_sum.to(self.device), torch.tensor(self.images_trained, device=self.device))
        loss_sum, images = (self.trainer.strategy.reduce(value.clone(), reduce_op="sum") for value in sums)
        return loss_sum, images

    def reseed(self, batch_idx: int) -> None:
        """Makes what follows in a training step a function of seed, epoch, batch and process."""
        entropy = [self.seed, self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def freeze_by_name(network: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes parameters by name, and the statistics of batch norms without any other parameter.

    Args:
        network: whose parameters are named.
        patterns: names, in which ``*`` stands for anything.

    Raises:
        ConfigError: a pattern fits no parameter.
    """
    parameters = dict(network.named_parameters())
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            raise ConfigError(f'model.freeze: no parameter is named "{pattern}"{did_you_mean(pattern, parameters)}')
        for name in names:
            parameters[name].requires_grad_(False)
    for module in network.modules() if patterns else ():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and own and not any(p.requires_grad for p in own):
            module.eval()


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
