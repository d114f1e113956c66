"""Semantic segmentation: a segmenter's own losses, mean intersection over union."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import ConfigError
from focalnet.inference.segmenting import slide
from focalnet.losses.segmentation import criterion
from focalnet.metrics.semantic import SemanticMetric
from focalnet.models import Mask2Former, Segmenter
from focalnet.models.base import Size
from focalnet.ops.label_maps import label_map
from focalnet.ops.segments import segments_of
from focalnet.structures import IGNORED, SemanticBatch, SemanticMap
from focalnet.tasks.dense import DenseTask
from focalnet.tasks.semantic_found import SemanticPredictions


@dataclass(frozen=True, kw_only=True)
class SlideConfig:
    """Evaluation through a window that slides over the picture, as mmseg does it.

    Args:
        crop: side in pixels of the window.
        stride: how far it moves.
    """

    crop: int = 512
    stride: int = 341

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.crop:
            raise ConfigError(f"model.slide: stride={self.stride} must be at least 1 and at most crop={self.crop}")


class SemanticTask(DenseTask):
    """Trains a network that says of each pixel what it is: UPerNet or Mask2Former.

    Args:
        slide: in validation, look through a sliding window; null looks at whole pictures.
        kwargs: those of ``DenseTask``.
    """

    network: Segmenter[Any, Any, Any]
    network_type = Segmenter
    kind = "segmenter"
    inspector = SemanticPredictions

    def __init__(self, *, slide: SlideConfig | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slide = slide

    def configure_model(self) -> None:
        super().configure_model()
        if isinstance(self.network, Mask2Former):
            self.ask_for("semantic")
        self.criterion = criterion(self.network.config)

    def training_step(self, batch: SemanticBatch, batch_idx: int) -> Tensor:
        self.reseed(batch_idx)
        images = padded(batch["images"], self.network.config.size_divisor)
        outputs = self.network.training_outputs(images)
        losses = self.criterion(outputs, self._targets(batch["labels"], images))
        return self.total(losses, len(images))

    def on_validation_epoch_start(self) -> None:
        self.metric = SemanticMetric(self.data.num_classes)

    def validation_step(self, batch: SemanticBatch, batch_idx: int) -> dict[str, list[SemanticMap]]:
        """Returns the classes of each image's pixels, as ``found``."""
        images = padded(batch["images"], self.trained.config.size_divisor)
        if self.slide is None:
            found: list[SemanticMap] = self.trained.segment(images, batch["sizes"], batch["original_sizes"])
        else:
            found = self._slid(images, batch["sizes"], batch["original_sizes"])
        self.metric.update(found, batch["labels"])
        return {"found": found}

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            self.metric.gather()
        self.found = self.metric.compute()
        self.log_dict(self.found.summary(), sync_dist=False)

    def _slid(self, images: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size]) -> list[SemanticMap]:
        assert self.slide is not None
        crop, stride = (self.slide.crop,) * 2, (self.slide.stride,) * 2
        scores = slide(self.trained, images, crop, stride)
        looked_at = zip(scores, sizes, original_sizes, strict=True)
        return [SemanticMap(label_map(one[:, :h, :w], original)) for one, (h, w), original in looked_at]

    def _targets(self, labels: Sequence[Tensor], images: Tensor) -> Any:
        """What the losses take: maps of the images' size, or for Mask2Former a mask for each class in an image."""
        height, width = images.shape[-2:]
        maps = torch.stack(
            [F.pad(one, (0, width - one.shape[1], 0, height - one.shape[0]), value=IGNORED) for one in labels]
        )
        return [segments_of(one) for one in maps] if isinstance(self.network, Mask2Former) else maps


def padded(images_BCHW: Tensor, divisor: int) -> Tensor:
    """Zeros at the right and below, so that the sides are multiples of a divisor; in the memory networks like best."""
    height, width = (math.ceil(side / divisor) * divisor - side for side in images_BCHW.shape[-2:])
    return F.pad(images_BCHW, (0, width, 0, height)).contiguous(memory_format=torch.channels_last)
