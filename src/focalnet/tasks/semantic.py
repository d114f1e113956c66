"""Semantic segmentation: a segmenter's own losses, mean intersection over union."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.data.detection_transforms import pad
from focalnet.errors import ConfigError
from focalnet.inference.segmenting import check_window, mean_scores, meeting_size, slide
from focalnet.losses.segmentation import criterion
from focalnet.metrics.semantic import SemanticMetric
from focalnet.models import Mask2Former, Segmenter
from focalnet.models.base import Size
from focalnet.ops.label_maps import label_map
from focalnet.results import SemanticMap
from focalnet.samples import IGNORED, LabelMapTarget, SemanticBatch
from focalnet.tasks.dense import DenseTask
from focalnet.tasks.semantic_found import SemanticPredictions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SlideConfig:
    """Evaluation through a window that slides over the picture, as mmseg does it.

    Args:
        crop: side in pixels of the window, a multiple of the network's ``size_divisor``.
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
        flip: in validation, also look at every picture mirrored; the mean of the probabilities counts.
        kwargs: those of ``DenseTask``.
    """

    network: Segmenter[Any, Any, Any]
    network_type = Segmenter
    kind = "segmenter"
    inspector = SemanticPredictions

    def __init__(self, *, slide: SlideConfig | None = None, flip: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slide, self.flip = slide, flip
        self._told_of_one_class = False

    def configure_model(self) -> None:
        super().configure_model()
        if isinstance(self.network, Mask2Former):
            self.ask_for("semantic")
        self.criterion = criterion(self.network.config)
        if self.slide is not None:
            check_window((self.slide.crop,) * 2, self.network.config.size_divisor, "model.slide: crop")

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
        looks = [(batch["images"], batch["sizes"]), *batch["others"]]
        ways = [(*look, mirrored) for look in looks for mirrored in ((False, True) if self.flip else (False,))]
        scores = zip(*(self._scores(*way) for way in ways), strict=True)
        found = [
            SemanticMap(label_map(self._mean(of_one, original), original), self.trained.class_names)
            for of_one, original in zip(scores, batch["original_sizes"], strict=True)
        ]
        self.metric.update(found, batch["labels"])
        return {"found": found}

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            self.metric.gather()
        self.found = self.metric.compute()
        there = self.found.matrix.sum(1).nonzero()[0].tolist()
        if len(there) == 1 and not self._told_of_one_class:
            name = self.data.class_names[there[0]]
            logger.warning('every labelled pixel that was validated on is of class "%s": figures say little', name)
            self._told_of_one_class = True
        self.log_dict(self.found.summary(), sync_dist=False)

    def _scores(self, images: Tensor, sizes: Sequence[Size], mirrored: bool) -> list[Tensor]:
        """Of each image the scores of its classes, without padding and no longer mirrored."""
        if mirrored:
            images = pad([one[:, :h, :w].flip(-1) for one, (h, w) in zip(images, sizes, strict=True)], multiple=1)
        images = padded(images, self.trained.config.size_divisor)
        if self.slide is None:
            scores = self.trained.class_scores(images)
        else:
            scores = slide(self.trained, images, (self.slide.crop,) * 2, (self.slide.stride,) * 2)
        seen = [one[:, :h, :w] for one, (h, w) in zip(scores, sizes, strict=True)]
        return [one.flip(-1) for one in seen] if mirrored else seen

    def _mean(self, looks: Sequence[Tensor], original: Size) -> Tensor:
        """The scores of an image from all looks at it; those of a single one as they are."""
        if len(looks) == 1:
            return looks[0]
        size = meeting_size(original, [(one.shape[1], one.shape[2]) for one in looks])
        return mean_scores(looks, size, logits=self.trained.scores_are_logits)

    def _targets(self, labels: Sequence[Tensor], images: Tensor) -> Any:
        """What the losses take: maps of the images' size, or for Mask2Former a mask for each class in an image."""
        height, width = images.shape[-2:]
        maps = torch.stack(
            [F.pad(one, (0, width - one.shape[1], 0, height - one.shape[0]), value=IGNORED) for one in labels]
        )
        return [LabelMapTarget(one).segments() for one in maps] if isinstance(self.network, Mask2Former) else maps


def padded(images_BCHW: Tensor, divisor: int) -> Tensor:
    """Zeros at the right and below, so that the sides are multiples of a divisor; in the memory networks like best."""
    height, width = (math.ceil(side / divisor) * divisor - side for side in images_BCHW.shape[-2:])
    return F.pad(images_BCHW, (0, width, 0, height)).contiguous(memory_format=torch.channels_last)
