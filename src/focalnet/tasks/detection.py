"""Detection and instance segmentation: a detector's own losses, COCO's average precision."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import torch

from focalnet import zoo
from focalnet.backbones import FocalNetTrunk
from focalnet.errors import ConfigError
from focalnet.losses.detection import criterion
from focalnet.metrics.coco import CocoMetric, summary
from focalnet.models import Detector
from focalnet.structures import DetectionBatch, Detections
from focalnet.tasks.base import Task
from focalnet.tasks.optim import OptimizerConfig, ScheduleConfig


class DetectionTask(Task):
    """Trains a detector: Mask R-CNN, Cascade Mask R-CNN, ATSS or Sparse R-CNN.

    Args:
        architecture: one of ``focalnet models``, for random initial weights outside the backbone.
        weights: start from these instead: a detector's catalogue name or file; the heads for the classes are new
            where their number differs. Give one of the two.
        backbone_weights: with ``architecture``: a classifier's catalogue name or file to start the backbone from.
        options: of the detector, to change, e.g. ``{"drop_path_rate": 0.2}``.
        optimizer: AdamW and its parameter groups.
        schedule: learning rate per update.
        ema_decay: decay per update of a moving average of the weights, which is then what is validated and saved.
        freeze_stages: stem and this many stages of the backbone keep their initial weights; null for none.
        grad_checkpointing: trade time for memory.
        compile: pass the network through ``torch.compile``.
        seed: of initial weights, sampling and drop path; linked to ``seed_everything``.
    """

    network: Detector[Any, Any, Any]

    def __init__(
        self,
        architecture: str | None = None,
        weights: str | None = None,
        backbone_weights: str | None = None,
        options: dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, reference_batch=16),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
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
        if backbone_weights is not None and architecture is None:
            raise ConfigError(
                "model.backbone_weights goes with model.architecture; model.weights are of a whole detector"
            )
        self.backbone_weights = backbone_weights

    def build(self, num_classes: int) -> Detector[Any, Any, Any]:
        network: Any
        if self.architecture is not None:
            network = zoo.create_model(self.architecture, num_classes=num_classes, **self.options)
        else:
            network = zoo.load(str(self.weights), num_classes=num_classes, **self.options)
        if not isinstance(network, Detector):
            raise ConfigError(f"{self.architecture or self.weights} is no detector; it may be model.backbone_weights")
        if self.backbone_weights is not None:
            backbone: Any = network.backbone
            start = zoo.load(self.backbone_weights, features_only=True, **asdict(backbone.config))
            backbone.load_state_dict(start.state_dict())
        network.train()
        return network

    def blank(self) -> Detector[Any, Any, Any]:
        return cast("Detector[Any, Any, Any]", self.network.config.build())

    def trunk(self) -> FocalNetTrunk:
        return cast("FocalNetTrunk", self.network.backbone)

    def configure_model(self) -> None:
        super().configure_model()
        self.criterion = criterion(self.network.config)

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> torch.Tensor:
        self.reseed(batch_idx)
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        outputs = self.network.training_outputs(images, batch["sizes"], batch["targets"])
        losses = self.criterion(outputs, batch["targets"])
        loss = torch.stack(list(losses.values())).sum()
        self.log_dict({f"train_{name}_step": value.detach() for name, value in losses.items()})
        self.log_training(loss, len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        samples = self.data.samples["val"]
        self.metric = CocoMetric(samples.coco.to_coco(samples.images), masks=self.finds_masks and self.data.masks)

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> dict[str, list[Detections]]:
        """Returns the objects found in each image, as ``found``."""
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        found: list[Detections] = self.trained.detect(images, batch["sizes"], batch["original_sizes"])
        self.metric.update(found, batch["image_ids"])
        return {"found": found}

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            self.metric.gather()
        self.found = self.metric.compute()
        shown = {name: value for name, value in summary(self.found).items() if "_ar_" not in name}
        self.log_dict(shown, sync_dist=False)

    @property
    def finds_masks(self) -> bool:
        """Whether the network segments the objects it finds."""
        return bool(getattr(self.network.config, "masks", False))
