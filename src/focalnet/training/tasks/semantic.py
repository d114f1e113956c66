"""Semantic segmentation: a segmenter's own losses, mean intersection over union."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from focalnet.data.preprocess import pad
from focalnet.errors import ConfigError
from focalnet.inference.tta import check_window, mean_scores, meeting_size, slide
from focalnet.metrics.semantic import SemanticEvaluator
from focalnet.ops.label_maps import label_map
from focalnet.results import SemanticMap
from focalnet.samples import Batch, LabelMapTarget, Size
from focalnet.training.tasks.base import DenseTask, padded

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SlideConfig:
    """Evaluation through a window that slides over the image, as mmseg does it.

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
        slide: in validation, predict through a sliding window; null takes whole images.
        flip: in validation, also predict every image mirrored; the mean of the probabilities counts.
        kwargs: those of ``DenseTask``.
    """

    name = "semantic"
    evaluator_class = SemanticEvaluator
    evaluator: SemanticEvaluator

    def __init__(self, *, slide: SlideConfig | None = None, flip: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slide, self.flip = slide, flip
        self._told_of_one_class = False

    def configure_model(self) -> None:
        super().configure_model()
        if self.slide is not None:
            check_window((self.slide.crop,) * 2, self.network.config.size_divisor, "model.slide: crop")

    def validation_step(self, batch: Batch[LabelMapTarget], batch_idx: int) -> None:
        sizes = [(batch.images, batch.sizes), *((view.images, view.sizes) for view in batch.views)]
        views = [(*view, mirrored) for view in sizes for mirrored in ((False, True) if self.flip else (False,))]
        scores = zip(*(self._scores(*view) for view in views), strict=True)
        results = [
            SemanticMap(label_map(self._mean(of_one, original), original), self.trained.class_names)
            for of_one, original in zip(scores, batch.original_sizes, strict=True)
        ]
        self.evaluator.update(results, batch)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        present = self.evaluator.metric.matrix.sum(1).nonzero().flatten().tolist()
        if len(present) == 1 and not self._told_of_one_class:
            name = self.data.class_names[present[0]]
            logger.warning('every labeled pixel that was validated on is of class "%s": figures say little', name)
            self._told_of_one_class = True

    def _scores(self, images: Tensor, sizes: Sequence[Size], mirrored: bool) -> list[Tensor]:
        """The class scores of each image, without padding and with mirroring undone."""
        if mirrored:
            images = pad([one[:, :h, :w].flip(-1) for one, (h, w) in zip(images, sizes, strict=True)], divisor=1)
        images = padded(images, self.trained.config.size_divisor)
        if self.slide is None:
            scores = self.trained.class_scores(images)
        else:
            scores = slide(self.trained, images, (self.slide.crop,) * 2, (self.slide.stride,) * 2)
        cropped = [one[:, :h, :w] for one, (h, w) in zip(scores, sizes, strict=True)]
        return [one.flip(-1) for one in cropped] if mirrored else cropped

    def _mean(self, views: Sequence[Tensor], original: Size) -> Tensor:
        """The mean of the scores of an image's views; those of a single one as they are."""
        if len(views) == 1:
            return views[0]
        size = meeting_size(original, [(one.shape[1], one.shape[2]) for one in views])
        return mean_scores(views, size, logits=self.trained.scores_are_logits)
